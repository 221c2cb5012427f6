/* Charts on uPlot: one function a kind of chart. Every chart's element carries data-points, the number of points it
   drew, and is drawn again when the theme or the width changes. */
"use strict";

const Charts = (() => {
  const redraws = new Map(); // element -> function that draws it

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const palette = (i) => colour(`--series-${(i % 6) + 1}`);

  function draw(element, make) {
    redraws.set(element, make);
    element.replaceChildren();
    make(element);
  }

  function redrawAll() {
    for (const [element, make] of redraws) {
      if (element.isConnected) draw(element, make);
      else redraws.delete(element);
    }
  }

  const width = (element) => Math.max(240, Math.floor(element.getBoundingClientRect().width) || 240);

  /* Numbers as a reader writes them: 3 digits, with a unit's prefix for seconds and bytes. */
  function quantity(value, unit) {
    if (value === null || value === undefined) return "–";
    if (unit === "seconds") {
      for (const [scale, name] of [[1, "s"], [1e-3, "ms"], [1e-6, "µs"]]) {
        if (Math.abs(value) >= scale) return `${digits(value / scale)} ${name}`;
      }
      return `${digits(value * 1e9)} ns`;
    }
    if (unit === "bytes") {
      for (const [scale, name] of [[2 ** 30, "GiB"], [2 ** 20, "MiB"], [2 ** 10, "KiB"]]) {
        if (Math.abs(value) >= scale) return `${digits(value / scale)} ${name}`;
      }
      return `${value} B`;
    }
    if (unit === "FLOP/s" || unit === "B/s") return `${digits(value / 1e9)} G${unit}`;
    return digits(value) + (unit && unit !== "ratio" ? ` ${unit}` : "");
  }

  function digits(value) {
    const size = Math.abs(value);
    if (value === 0) return "0";
    if (size >= 1e6 || size < 1e-3) return value.toExponential(1).replace("e+", "e");
    return size >= 100 ? String(Math.round(value)) : String(Number(value.toPrecision(3)));
  }

  const axis = (more) => ({
    stroke: colour("--faint"),
    grid: { stroke: colour("--line"), width: 1 },
    ticks: { stroke: colour("--line"), width: 1 },
    ...more,
  });

  /* Room for the longest label of an axis, so that none is cut. */
  function room(chart, labels, i) {
    if (!labels) return 40;
    const longest = labels.reduce((a, b) => (String(b ?? "").length > a.length ? String(b) : a), "");
    chart.ctx.font = chart.axes[i].font[0];
    return Math.ceil(chart.ctx.measureText(longest).width / devicePixelRatio) + 18;
  }

  function plot(element, options, data) {
    /* On the right, half of a label below the last tick. */
    const chart = new uPlot({ width: width(element), padding: [12, 30, 0, 0], cursor: { drag: { x: false, y: false } }, ...options }, data, element);
    const drawn = data.slice(1).reduce((sum, column, i) => {
      return sum + (options.series[i + 1].counted === false ? 0 : column.filter((v) => v !== null).length);
    }, 0);
    element.dataset.points = String(drawn);
    const canvas = element.querySelector("canvas");
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `${options.label}; ${drawn} points`);
    return chart;
  }

  /* A figure per commit: median, quartile band, and the goal as a dashed line. points: [{commit, value, q25, q75}]. */
  function history(element, { label, unit, points, goal, height = 240, describe }) {
    draw(element, (into) => {
      const x = points.map((_, i) => i);
      const line = colour("--series-1");
      const data = [x, points.map((p) => p.value), points.map((p) => p.q25), points.map((p) => p.q75)];
      const series = [
        { label: "commit", value: (u, i) => (i === null ? "–" : describe(points[i].commit)) },
        { label: "median", stroke: line, width: 2, points: { show: true, size: 6 }, value: (u, v) => quantity(v, unit) },
        { label: "lower quartile", stroke: "transparent", counted: false, points: { show: false }, value: (u, v) => quantity(v, unit) },
        { label: "upper quartile", stroke: "transparent", counted: false, points: { show: false }, value: (u, v) => quantity(v, unit) },
      ];
      if (goal !== null && goal !== undefined) {
        data.push(points.map(() => goal));
        series.push({ label: "to reach", stroke: colour("--good"), dash: [6, 4], counted: false, points: { show: false }, value: (u, v) => quantity(v, unit) });
      }
      plot(into, {
        label,
        height,
        series,
        bands: [{ series: [3, 2], fill: line + "33" }],
        scales: { x: { time: false, range: [-0.5, Math.max(points.length - 0.5, 0.5)] }, y: { range: (u, low, high) => [0, (high || 1) * 1.1] } },
        axes: [
          axis({ space: 70, incrs: [1, 2, 5, 10, 20, 50, 100], values: (u, ticks) => ticks.map((i) => (points[i] ? points[i].commit.slice(0, 7) : "")) }),
          axis({ size: room, values: (u, ticks) => ticks.map((v) => quantity(v, unit)) }),
        ],
      }, data);
    });
  }

  /* Log-log scaling: measured points with the fitted power law. */
  function scaling(element, { label, sizes, times, exponent, factor, fitted_from: from }) {
    draw(element, (into) => {
      const series = [
        { label: label, value: (u, v) => (v === null ? "–" : String(v)) },
        { label: "time", stroke: palette(0), width: 2, points: { show: true, size: 6 }, value: (u, v) => quantity(v, "seconds") },
      ];
      const data = [sizes, times];
      if (exponent !== null) {
        data.push(sizes.map((s) => (s >= from ? factor * s ** exponent : null)));
        series.push({ label: `fit, p = ${exponent.toFixed(2)}`, stroke: palette(1), dash: [6, 4], counted: false, points: { show: false }, value: (u, v) => quantity(v, "seconds") });
      }
      plot(into, {
        label: `time over ${label}`,
        height: 220,
        series,
        scales: { x: { time: false, distr: 3 }, y: { distr: 3 } },
        axes: [
          axis({ values: (u, ticks) => ticks.map((v) => (v === null ? "" : digits(v))) }),
          axis({ size: room, values: (u, ticks) => ticks.map((v) => (v === null ? "" : quantity(v, "seconds"))) }),
        ],
      }, data);
    });
  }

  /* Log-log growth: a curve for each library. */
  function growth(element, { label, curves }) {
    draw(element, (into) => {
      const x = [...new Set(curves.flatMap((curve) => curve.sizes))].sort((a, b) => a - b);
      const data = [x];
      const series = [{ label, value: (u, v) => (v === null ? "–" : String(v)) }];
      curves.forEach((curve, i) => {
        const at = new Map(curve.sizes.map((size, k) => [size, curve.times[k]]));
        data.push(x.map((size) => at.get(size) ?? null));
        series.push({ label: curve.library, stroke: palette(i), width: 2, spanGaps: true, points: { show: true, size: 6 }, value: (u, v) => quantity(v, "seconds") });
      });
      plot(into, {
        label: `time over ${label}, ${curves.map((curve) => curve.library).join(", ")}`,
        height: 240,
        series,
        scales: { x: { time: false, distr: 3 }, y: { distr: 3 } },
        axes: [
          axis({ values: (u, ticks) => ticks.map((v) => (v === null ? "" : digits(v))) }),
          axis({ size: room, values: (u, ticks) => ticks.map((v) => (v === null ? "" : quantity(v, "seconds"))) }),
        ],
      }, data);
    });
  }

  /* Roofline: a line for each ceiling, a colour for each library. */
  function roofline(element, { work, peaks, bandwidth }) {
    draw(element, (into) => {
      const low = Math.min(...work.map((w) => w.intensity)) / 3;
      const high = Math.max(...work.map((w) => w.intensity)) * 3;
      const grid = Array.from({ length: 41 }, (_, i) => low * (high / low) ** (i / 40));
      const x = [...new Set([...grid, ...work.map((w) => w.intensity)])].sort((a, b) => a - b);
      const libraries = [...new Set(work.map((w) => w.library))].sort();
      const at = (column) => x.map((value) => column.get(value) ?? null);
      const rate = (u, v) => quantity(v, "FLOP/s");
      const ceilings = Object.entries(peaks).map(([dtype, peak]) => ({
        label: `${dtype} ceiling`,
        column: x.map((i) => (bandwidth ? Math.min(peak, bandwidth * i) : peak)),
      }));
      const series = [{ label: "operations a byte", value: (u, v) => (v === null ? "–" : digits(v)) }];
      const data = [x];
      ceilings.forEach((ceiling, i) => {
        data.push(ceiling.column);
        series.push({ label: ceiling.label, stroke: colour("--faint"), width: 2, dash: i ? [8, 4] : [], counted: false, points: { show: false }, value: rate });
      });
      libraries.forEach((library, i) => {
        const best = new Map();
        for (const w of work) if (w.library === library) best.set(w.intensity, Math.max(w.rate, best.get(w.intensity) ?? 0));
        data.push(at(best));
        series.push({ label: library, stroke: palette(i), fill: palette(i), paths: () => null, points: { show: true, size: library.startsWith("nbprop") ? 9 : 6, fill: palette(i) }, value: rate });
      });
      plot(into, {
        label: "roofline",
        height: 380,
        series,
        scales: { x: { time: false, distr: 3 }, y: { distr: 3 } },
        axes: [
          axis({ label: "operations a byte", labelSize: 24, values: (u, ticks) => ticks.map((v) => (v === null ? "" : digits(v))) }),
          axis({ size: room, values: (u, ticks) => ticks.map((v) => (v === null ? "" : quantity(v, "FLOP/s"))) }),
        ],
      }, data);
    });
  }

  let resizing;
  window.addEventListener("resize", () => {
    clearTimeout(resizing);
    resizing = setTimeout(redrawAll, 150);
  });

  return { history, scaling, growth, roofline, redrawAll, quantity, digits };
})();
