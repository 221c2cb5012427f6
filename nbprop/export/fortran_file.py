"""stem.f90: a Fortran module with interfaces of the exported functions, by ISO_C_BINDING."""

from nbprop.export.literals import wrapped
from nbprop.export.signatures import arrays_of, described

_LONGEST = 63  # letters of a Fortran name
_LINE = 100


def fortran_file(export):
    """The text of stem.f90. export: an api.Export."""
    stem, real = export.stem, "c_float" if export.real == "float" else "c_double"
    interfaces = "\n".join(_interface(export, program.name, real) for program in export.programs)
    interfaces += "".join(f"\n{_step(export, name, real)}" for name in export.steps)
    sizes = "".join(
        f"    integer(c_int), parameter, public :: {stem}_{name.lower()} = {value} ! {text}\n"
        for name, value, text in export.sizes
    )
    weights = f"{stem}_params({max(1, export.net.n_params)})"
    names = [program.name for program in export.programs] + list(export.steps)
    public = _continued("    public :: ", [*(f"{stem}_{name}" for name in names), f"{stem}_selftest"])
    return (
        f"! {stem}.f90: the network of {stem}.h, written by nbprop {export.version}.\n"
        "!\n"
        f"! Compile {stem}.c, and link it: gfortran program.f90 {stem}.f90 {stem}.o\n"
        "! Arrays are C's, row-major: a sample's elements lie together, so that x(inputs, n) and y(outputs, n) hold\n"
        "! n samples. What may be NULL in C is optional here.\n"
        f"module {stem}\n"
        f"    use, intrinsic :: iso_c_binding, only: c_int, {real}\n"
        "    implicit none\n"
        "    private\n\n"
        f"{sizes}\n"
        f"    real({real}), protected, public, bind(C, name='{stem}_params') :: {weights}\n\n"
        f"{public}\n"
        "    interface\n"
        f"{interfaces}\n"
        "        ! 0 if this build computes what nbprop did.\n"
        f"        function {stem}_selftest(scratch) bind(C, name='{stem}_selftest') result(failed)\n"
        f"            import :: c_int, {real}\n"
        f"            real({real}), intent(inout) :: scratch(*)\n"
        "            integer(c_int) :: failed\n"
        f"        end function {stem}_selftest\n"
        "    end interface\n"
        f"end module {stem}\n"
    )


def check_fortran_names(stem, names):
    """Refuse a stem whose functions would have names that are too long for Fortran."""
    longest = max((f"{stem}_{name}" for name in (*names, "selftest_scratch")), key=len)
    if len(longest) > _LONGEST:
        raise ValueError(
            f"export_c: stem: {longest} is longer than a name of Fortran, {_LONGEST} letters; choose a shorter one"
        )


def _continued(prefix, names):
    lines, line = [], prefix
    for position, name in enumerate(names):
        text = name + (", " if position + 1 < len(names) else "")
        if len(line) + len(text) > _LINE:
            lines.append(f"{line.rstrip()} &")
            line = "        "
        line += text
    return "\n".join([*lines, line]) + "\n"


def _declared(array, real, optional):
    kind = "integer(c_int)" if array.c_type == "int" else f"real({real})"
    intent = "intent(in)" if array.constant else "intent(out)"
    return f"            {kind}, {intent}{', optional' if optional else ''} :: {array.name}(*)"


def _interface(export, function, real):
    name, arrays = f"{export.stem}_{function}", arrays_of(function, export.net, export.loss, export.real)
    value = function == "value_and_grad"
    kind, result = ("function", " result(loss)") if value else ("subroutine", "")
    arguments = ["params", "n", *(array.name for array in arrays), "scratch"]
    head = wrapped(f"        {kind} {name}", arguments, f" bind(C, name='{name}'){result}").replace("\n", " &\n")
    optional = {"dx", "grads"} if function in ("vjp", "value_and_grad") else set()
    lines = [
        f"        ! {described(function, export.net).replace('NULL', 'left out')}",
        head,
        f"            import :: c_int, {real}",
        f"            real({real}), intent(in) :: params(*)",
        "            integer(c_int), value :: n",
        *(_declared(array, real, not array.constant and array.name in optional) for array in arrays),
        f"            real({real}), intent(inout) :: scratch(*)",
        *([f"            real({real}) :: loss"] if value else []),
        f"        end {kind} {name}",
    ]
    return "\n".join(lines)


def _step(export, name, real):
    full, adam = f"{export.stem}_{name}", name == "adam"
    arguments = ["params", "grads", *(("state", "step") if adam else ()), "lr"]
    lines = [
        f"        ! A step of {name}, as in {export.stem}.h.",
        f"        subroutine {full}({', '.join(arguments)}) bind(C, name='{full}')",
        f"            import :: c_int, {real}",
        f"            real({real}), intent(inout) :: params(*)",
        f"            real({real}), intent(in) :: grads(*)",
        *(
            [f"            real({real}), intent(inout) :: state(*)", "            integer(c_int), value :: step"]
            if adam
            else []
        ),
        f"            real({real}), value :: lr",
        f"        end subroutine {full}",
    ]
    return "\n".join(lines)
