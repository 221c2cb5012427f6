"""The test vector: what nbprop computes for one sample of a pattern, and the C function that checks it.

Inputs follow from a formula (c/selftest.c), and of each result one sum is stored, so that a device needs no tables.
"""

import math

import numpy as np

from nbprop.autodiff.derivatives import hvp, jvp, vjp
from nbprop.autodiff.gradients import forward, value_and_grad
from nbprop.export.literals import literal, wrapped
from nbprop.export.signatures import arrays_of
from nbprop.lowering.plan import plan as lowered_plan
from nbprop.lowering.plan import workspace

_TOLERANCES = {"float32": 1e-4, "float64": 1e-11}
# Of each input: where its pattern starts, and its range. Targets lie where all losses take them.
_PATTERNS = {"x": (11, -1.0, 1.0), "dx": (23, -1.0, 1.0), "dy": (5, -1.0, 1.0), "v": (41, -1.0, 1.0)}
_TARGET = (3, 0.0, 1.0)
SELFTEST = ("fill_test_numbers", "agrees")  # what the self-test calls of c/selftest.c
_SHOWN = 8  # numbers of the vector that the header writes out


def _numbers(size, shift, low, high, dtype):
    pattern = ((np.arange(size) % 64 * 37 + shift) % 64 / 64).astype(dtype)
    return dtype.type(low) + dtype.type(high - low) * pattern


def _sum(values):
    """What `agrees` of c/selftest.c computes of an array."""
    return float(np.dot(values.ravel().astype(np.float64), _numbers(values.size, 7, 0.0, 1.0, np.dtype(np.float64))))


class Vector:
    """One sample through all functions of an export: inputs by formula, results by nbprop."""

    def __init__(self, net, loss, params, dtype, functions, state, weights_apart=False):
        # In float64 whatever the export's type is: then nothing but rounding there stands between the two.
        plan = lowered_plan(net, loss, 1, np.float64, mode="inference")
        self.net, self.loss, self.dtype, self.functions = net, loss, dtype, functions
        self.weights_apart = weights_apart  # whether they are in a file: the self-test's caller has read them
        self.sizes = {"x": math.prod(net.input_shape), "dx": math.prod(net.input_shape)}
        self.sizes |= dict.fromkeys(("y", "dy"), math.prod(net.output_shape))
        self.sizes |= dict.fromkeys(("grads", "v", "hv"), net.n_params)
        self.integers = {}
        if plan.x_classes:
            self.integers["x"] = self._classes(plan.x_classes, self.sizes["x"], 11)
        if loss is not None:
            self.sizes["target"] = math.prod(plan.target_shape)
            if plan.classes:
                self.integers["target"] = self._classes(plan.classes, self.sizes["target"], 3)
        self.results = self._results(plan, params.astype(np.float64), state.astype(np.float64))

    @staticmethod
    def _classes(count, size, shift):
        return (np.arange(size) % 64 * 37 + shift) % 64 * 7 % count

    def _pattern(self, name):
        return _TARGET if name == "target" else _PATTERNS[name]

    def _input(self, name, shape):
        found = self.integers.get(name)
        if found is None:
            shift, low, high = self._pattern(name)
            found = _numbers(math.prod(shape), shift, low, high, self.dtype).astype(np.float64)
        return found.reshape(1, *shape) if name != "v" else found

    def _results(self, plan, params, state):
        """{(function, array): what nbprop computes}; the loss is an array of one number."""
        work, found = workspace(plan), {}
        x = self._input("x", plan.input_shape)
        target = None if self.loss is None else self._input("target", plan.target_shape)

        def empty(name, shape=()):
            found[function, name] = np.empty((1, *shape) if shape else plan.n_params)
            return found[function, name]

        state = state if state.size else None
        for function in self.functions:
            if function == "forward":
                forward(plan, params, x, empty("y", plan.output_shape), work, state)
            elif function == "vjp":
                dy = self._input("dy", plan.output_shape)
                dx = None if plan.x_classes else empty("dx", plan.input_shape)
                vjp(plan, params, x, dy, empty("grads"), dx, work, state=state)
            elif function == "jvp":
                dx = self._input("dx", plan.input_shape)
                jvp(plan, params, None, x, dx, empty("dy", plan.output_shape), work, state)
            elif function == "hvp":
                hvp(plan, params, self._input("v", (plan.n_params,)), x, target, empty("hv"), work, state=state)
            else:
                loss = value_and_grad(plan, params, x, target, empty("grads"), work, state=state)
                found[function, "loss"] = np.array([loss])
        return found

    def scratch(self):
        """Elements that `stem_selftest` needs behind those of the functions."""
        return max(
            [0, *(sum(self.sizes[array.name] for array in self._in_scratch(function)) for function in self.functions)]
        )

    def _in_scratch(self, function):
        arrays = arrays_of(function, self.net, self.loss, "")
        return [array for array in arrays if array.name not in self.integers]

    def first(self, values):
        """The first numbers of an array as C text."""
        values = list(values.ravel())
        texts = [str(int(v)) if isinstance(v, np.integer) else literal(v, self.dtype) for v in values[:_SHOWN]]
        return ", ".join(texts) + (", ..." if len(values) > _SHOWN else "")

    def described(self):
        """What the header says of it."""
        x = self.first(self._input("x", self.net.input_shape))
        said = f"Test vector, checked by the self-test: for x = {x}"
        if ("forward", "y") in self.results:
            said += f", y = {self.first(self.results['forward', 'y'])}"
        return said + "."

    def example(self):
        """The first numbers of x."""
        return self.first(self._input("x", self.net.input_shape))

    def prototype(self, stem, real):
        """The declaration of the self-test."""
        text = (
            "/* 0 if this build computes what nbprop did, for one sample; else the number of the first function that\n"
            f" * does not, in the order above. scratch: {stem.upper()}_SELFTEST_SCRATCH elements. */\n"
        )
        return f"{text}int {stem}_selftest({self._parameters(real)});\n"

    def _parameters(self, real):
        return f"{f'const {real} *params, ' if self.weights_apart else ''}{real} *scratch"

    def function(self, stem, real):
        """The text of the self-test."""
        lines = [
            f"    static const int {name}[{values.size}] = {{{', '.join(map(str, values))}}};"
            for name, values in self.integers.items()
            if name == "x" or {"hvp", "value_and_grad"} & set(self.functions)
        ]
        lines += [] if self.functions else ["    (void)scratch;"]
        for number, function in enumerate(self.functions, 1):
            lines += ["    {", *(f"        {line}" for line in self._check(stem, real, function, number)), "    }"]
        if self.weights_apart and not self.functions:
            lines.append("    (void)params;")
        return f"int {stem}_selftest({self._parameters(real)})\n{{\n" + "\n".join([*lines, "    return 0;"]) + "\n}\n"

    def _check(self, stem, real, function, number):
        """The lines that check one function."""
        lines, place = [], f"scratch + {stem.upper()}_SCRATCH"
        for array in self._in_scratch(function):
            lines.append(f"{real} *{array.name} = {place};")
            place = f"{array.name} + {self.sizes[array.name]}"
        for array in self._in_scratch(function):
            if array.constant:
                shift, low, high = self._pattern(array.name)
                ends = f"{literal(low, self.dtype)}, {literal(high, self.dtype)}"
                lines.append(f"fill_test_numbers({array.name}, {self.sizes[array.name]}, {shift}, {ends});")
        weights = "params" if self.weights_apart else f"{stem}_params"
        arguments = [weights, "1", *(a.name for a in arrays_of(function, self.net, self.loss, "")), "scratch"]
        result = f"const {real} loss = " if function == "value_and_grad" else ""
        lines.append(wrapped(f"{result}{stem}_{function}", arguments, ";"))
        for (of, name), values in self.results.items():
            if of == function and values.size:
                pointer = "&loss" if name == "loss" else name
                expected, tolerance = repr(_sum(values)), _TOLERANCES[self.dtype.name]
                lines += [
                    f"if (!agrees({pointer}, {values.size}, {expected}, {tolerance!r})) {{",
                    f"    return {number};",
                    "}",
                ]
        return lines
