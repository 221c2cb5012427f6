/* The front page: fills the sections from window.DASHBOARD (data.js). */
"use strict";

(() => {
  const data = window.DASHBOARD;
  const byId = (id) => document.getElementById(id);
  const { quantity, digits } = Charts;
  const commits = new Map(data.commits.map((commit) => [commit.hash, commit]));

  /* make("td", {class: "number"}, "text" or nodes...) */
  function make(tag, attributes = {}, ...content) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...content);
    return node;
  }

  const day = (seconds) => new Date(seconds * 1000).toISOString().slice(0, 10);

  function describe(hash) {
    const commit = commits.get(hash);
    return `${hash.slice(0, 8)} ${day(commit.date)} ${commit.subject}`.trim();
  }

  const empty = (text) => make("p", { class: "none" }, text);

  function table(headings, rows) {
    const cell = (tag) => (content) => {
      const number = typeof content === "string" && /^[–\d(-]/.test(content);
      return make(tag, number ? { class: "number" } : {}, content);
    };
    return make("table", {},
      make("thead", {}, make("tr", {}, ...headings.map((h) => make("th", { scope: "col" }, h)))),
      make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map(cell("td"))))));
  }

  function summary() {
    const newest = data.commits[data.commits.length - 1];
    const goals = data.ratios.filter((r) => r.met !== null);
    const reached = goals.filter((r) => r.met).length;
    byId("summary").textContent = newest
      ? `${describe(newest.hash)} · ${data.commits.length} measured commits · ${reached} of ${goals.length} goals reached · ` +
        `${data.machine.cpu || data.machine.machine} · written ${data.generated.slice(0, 10)}`
      : "No results yet: run make bench-quick.";
    byId("asv-link").hidden = !data.asv;
  }

  function regressions() {
    const list = byId("regression-list");
    if (!data.regressions.length) return list.append(empty("None in the stored history."));
    for (const r of data.regressions) {
      const state = r.stands ? (r.confirmed ? "" : "Newest commit: measure again to be sure.") : "Undone since.";
      const name = r.key
        ? make("a", { href: "#ratio-history", onclick: (e) => { e.preventDefault(); choose(r.key, true); } }, r.name)
        : r.name;
      list.append(make("div", { title: r.benchmark, class: `regression${r.stands ? "" : " undone"}` },
        make("b", { class: r.stands ? "bad" : "faint" }, `+${Math.round(100 * (r.factor - 1))} %`), " ", name, make("br"),
        `${digits(r.value_before)} → ${digits(r.value_after)} at `, make("code", {}, r.after.slice(0, 8)),
        ` ${day(r.date)} ${r.subject}, after `, make("code", {}, r.before.slice(0, 8)), `. ${state}`));
    }
  }

  /* A small history in the table: the line of medians, the band of quartiles, steps in red. */
  function spark(entry) {
    const svgNamespace = "http://www.w3.org/2000/svg";
    const svg = document.createElementNS(svgNamespace, "svg");
    svg.setAttribute("viewBox", "0 0 100 20");
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("class", "spark");
    svg.setAttribute("aria-hidden", "true");
    const top = Math.max(...entry.points.map((p) => p.q75), 1e-12) * 1.05;
    const x = (i) => (entry.points.length > 1 ? 2 + (96 * i) / (entry.points.length - 1) : 50);
    const y = (v) => 19 - (18 * v) / top;
    const add = (tag, attributes) => {
      const node = document.createElementNS(svgNamespace, tag);
      for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
      svg.append(node);
    };
    const corner = (p, i, side) => `${x(i)},${y(p[side])}`;
    const upper = entry.points.map((p, i) => corner(p, i, "q75"));
    const lower = entry.points.map((p, i) => corner(p, i, "q25")).reverse();
    add("path", { d: `M${[...upper, ...lower].join("L")}Z` });
    add("polyline", { points: entry.points.map((p, i) => corner(p, i, "value")).join(" "), "vector-effect": "non-scaling-stroke" });
    entry.points.forEach((p, i) => {
      if (entry.steps.includes(p.commit) || entry.points.length === 1) {
        add("circle", { cx: x(i), cy: y(p.value), r: 2, class: entry.steps.includes(p.commit) ? "step" : "" });
      }
    });
    return svg;
  }

  const columns = [
    { name: "Work", key: (r) => r.title, cell: (r) => r.title },
    { name: "Threads", key: (r) => r.threads, cell: (r) => String(r.threads), number: true },
    { name: "From", key: (r) => r.ours, cell: (r) => (r.ours === "nbprop" ? "Python" : "@njit") },
    { name: "Time", key: (r) => r.times.ours ?? Infinity, cell: (r) => quantity(r.times.ours, "seconds"), number: true },
    { name: "Peer", key: (r) => r.peer_name, cell: (r) => r.peer_name },
    { name: "Its time", key: (r) => r.times.peer ?? Infinity, cell: (r) => quantity(r.times.peer, "seconds"), number: true },
    {
      name: "Ratio", key: (r) => r.now.value, number: true,
      cell: (r) => [make("b", {}, digits(r.now.value)), make("span", { class: "faint" }, ` [${digits(r.now.q25)}, ${digits(r.now.q75)}]`)],
    },
    {
      name: "To reach", key: (r) => r.goal ?? Infinity, number: true,
      cell: (r) => (r.goal === null ? [] : [`${digits(r.goal)} `, make("span", { class: r.met ? "good" : "bad" }, r.met ? "reached" : "missed")]),
    },
    { name: "Of peak", key: (r) => (r.peer === "fma" ? -1 / r.now.value : 0), cell: (r) => (r.peer === "fma" ? `${Math.round(100 / r.now.value)} %` : ""), number: true },
    {
      name: "History", key: null,
      cell: (r) => make("button", { type: "button", "aria-label": `History of ${r.title} compared with ${r.peer_name}, ${r.points.length} commits`, onclick: () => choose(r.key, true) }, spark(r)),
    },
  ];
  const sorting = { column: null, ascending: true };

  function head() {
    const row = byId("ratio-table").tHead.rows[0];
    columns.forEach((column, i) => {
      const title = column.key ? make("button", { type: "button", onclick: () => sortBy(i) }, column.name) : column.name;
      row.append(make("th", { scope: "col", class: column.number ? "number" : null }, title));
    });
  }

  function sortBy(i) {
    sorting.ascending = sorting.column === i ? !sorting.ascending : true;
    sorting.column = i;
    [...byId("ratio-table").tHead.rows[0].cells].forEach((cell, j) => {
      if (j === i) cell.setAttribute("aria-sort", sorting.ascending ? "ascending" : "descending");
      else cell.removeAttribute("aria-sort");
    });
    body();
  }

  function wanted(r) {
    const text = byId("filter-text").value.trim().toLowerCase();
    const peer = byId("filter-peer").value;
    const threads = byId("filter-threads").value;
    return (!text || `${r.title} ${r.key}`.toLowerCase().includes(text)) && (!peer || r.peer === peer) &&
      (!threads || String(r.threads) === threads) && (!byId("filter-missed").checked || r.met === false);
  }

  function body() {
    let shown = data.ratios.filter(wanted);
    if (sorting.column !== null) {
      const key = columns[sorting.column].key;
      const order = sorting.ascending ? 1 : -1;
      shown = shown.slice().sort((a, b) => (key(a) < key(b) ? -order : key(a) > key(b) ? order : 0));
    }
    /* In the order of the table, the rows of one work are a group, which its first row names. */
    const grouped = sorting.column === null;
    const first = (i) => !grouped || i === 0 || shown[i].title !== shown[i - 1].title;
    const rows = shown.map((r, i) => {
      const row = make("tr", { "data-key": r.key, class: grouped && first(i) ? "first" : null });
      columns.forEach((column, c) => {
        const content = column.cell(r);
        const nodes = Array.isArray(content) ? content : [content];
        if (c === 0) {
          const length = shown.slice(i).findIndex((other) => other.title !== r.title);
          const span = grouped ? (length < 0 ? shown.length - i : length) : 1;
          if (first(i)) row.append(make("th", { scope: span > 1 ? "rowgroup" : "row", rowspan: span > 1 ? span : null }, ...nodes));
        } else {
          row.append(make("td", { class: [column.number ? "number" : "", column.name === "Ratio" ? "ratio" : ""].join(" ").trim() || null,
            "data-label": column.name }, ...nodes));
        }
      });
      return row;
    });
    byId("ratio-table").tBodies[0].replaceChildren(...rows);
    byId("filter-count").textContent = `${shown.length} of ${data.ratios.length}`;
  }

  function filters() {
    const fill = (id, names) => byId(id).append(...[...new Map(names)].sort(([, a], [, b]) => (a < b ? -1 : 1)).map(([value, name]) => make("option", { value }, String(name))));
    fill("filter-peer", data.ratios.map((r) => [r.peer, r.peer_name]));
    fill("filter-threads", data.ratios.map((r) => [r.threads, r.threads]));
    for (const id of ["filter-text", "filter-peer", "filter-threads", "filter-missed"]) byId(id).addEventListener("input", body);
    byId("filter").addEventListener("submit", (event) => event.preventDefault());
  }

  /* Show the history of one ratio below the table. */
  function choose(key, moveThere) {
    const r = data.ratios.find((entry) => entry.key === key);
    if (!r) return;
    const box = byId("ratio-history");
    box.hidden = false;
    box.querySelector("h3").textContent = `${r.title}: nbprop (${r.ours === "nbprop" ? "Python" : "@njit"}) over ${r.peer_name}, ${r.threads} thread${r.threads > 1 ? "s" : ""}`;
    Charts.history(byId("ratio-chart"), { label: r.key, unit: "ratio", points: r.points, goal: r.goal, describe });
    byId("ratio-history-table").replaceChildren(table(["Ratio", "Quartiles", "Commit"],
      r.points.map((p) => [digits(p.value), `${digits(p.q25)} – ${digits(p.q75)}`, describe(p.commit)]).reverse()));
    for (const row of byId("ratio-table").tBodies[0].rows) row.setAttribute("aria-selected", String(row.dataset.key === key));
    if (moveThere) box.scrollIntoView({ block: "nearest" });
  }

  function roofline() {
    const { work } = data.roofline;
    if (!work.length) return byId("roofline-chart").append(empty("No rates were measured."));
    Charts.roofline(byId("roofline-chart"), data.roofline);
    const peak = data.roofline.peaks.float32;
    const ceilings = Object.entries(data.roofline.peaks).map(([dtype, rate]) => [`multiply-add peak, ${dtype}`, "ceiling", "–", quantity(rate, "FLOP/s"), "–"]);
    if (data.roofline.bandwidth) ceilings.push(["memory copy, both directions", "ceiling", "–", quantity(data.roofline.bandwidth, "B/s"), "–"]);
    byId("roofline-table").append(make("details", {}, make("summary", {}, "The same as a table"),
      table(["Work", "Library", "Operations per byte", "Rate", "Of the float32 peak"],
        [...ceilings, ...work.map((w) => [w.name, w.library, digits(w.intensity), quantity(w.rate, "FLOP/s"), peak ? `${Math.round((100 * w.rate) / peak)} %` : "–"])])));
  }

  function figure(into, caption) {
    const chart = make("div", { class: "chart" });
    into.append(make("figure", {}, make("figcaption", {}, ...caption), chart));
    return chart;
  }

  function scaling() {
    const into = byId("scaling-charts");
    if (!data.scaling.length) into.append(empty("Not measured."));
    for (const entry of data.scaling) {
      const law = entry.exponent === null ? "" : `: time ~ size^${entry.exponent.toFixed(2)} from ${digits(entry.fitted_from)} on`;
      Charts.scaling(figure(into, [make("b", {}, entry.name), law]), { label: entry.name, ...entry });
    }
  }

  function growth() {
    const into = byId("growth-charts");
    if (!data.growth.length) into.append(empty("Not measured: python benchmarks/growth.py."));
    for (const axis of data.growth) {
      const laws = axis.curves.map((c) => `${c.library} ${c.exponent === null ? "–" : c.exponent.toFixed(2)}`).join(", ");
      const knees = axis.own_knees.map(([low, high]) => `${digits(low)} to ${digits(high)}`).join(", ");
      Charts.growth(figure(into, [make("b", {}, axis.title), `: exponents ${laws}; `, knees ? make("span", { class: "bad" }, `a knee that no peer has: ${knees}`) : "no knee that a peer has not"]),
        { label: axis.title, curves: axis.curves });
    }
  }

  function histories(kind) {
    const into = byId(`${kind}-charts`);
    const entries = data.histories.filter((h) => h.kind === kind);
    if (!entries.length) into.append(empty("Not measured."));
    for (const entry of entries) {
      const now = entry.points[entry.points.length - 1].value;
      Charts.history(figure(into, [make("b", {}, entry.name), `: ${quantity(now, entry.unit)}`]),
        { label: entry.name, unit: entry.unit, points: entry.points, height: 180, describe });
    }
  }

  function machine() {
    const rows = [...Object.entries(data.machine), ...Object.entries(data.versions).map(([name, version]) => [name, `version ${version}`])];
    if (data.others.length) rows.push(["also in the results", data.others.join(", ")]);
    byId("machine-table").append(rows.length ? table(["Property", "Value"], rows) : empty("No results yet."));
  }

  function theme() {
    const root = document.documentElement;
    const system = window.matchMedia("(prefers-color-scheme: dark)");
    const show = (dark) => {
      root.dataset.theme = dark ? "dark" : "light";
      byId("theme").textContent = dark ? "Light" : "Dark";
      Charts.redrawAll();
    };
    /* What the reader chose is kept, unless the browser keeps nothing; else the system decides. */
    const kept = (value) => {
      try {
        if (value) localStorage.setItem("nbprop-theme", value);
        return localStorage.getItem("nbprop-theme");
      } catch {
        return null;
      }
    };
    show(kept() ? kept() === "dark" : system.matches);
    system.addEventListener("change", (event) => kept() || show(event.matches));
    byId("theme").addEventListener("click", () => {
      show(root.dataset.theme !== "dark");
      kept(root.dataset.theme);
    });
  }

  theme();
  summary();
  regressions();
  head();
  filters();
  body();
  const first = data.regressions.find((r) => r.key) || data.ratios[0];
  if (first) choose(first.key, false);
  roofline();
  scaling();
  growth();
  histories("compiling");
  histories("memory");
  machine();
})();
