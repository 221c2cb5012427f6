"""Names of nbprop that are imported while Numba types a function that uses them.

Numba reads what extensions have registered when a compilation begins. `nbprop.forward` in a user's @njit function may
be the first use of that name anywhere (nbprop/__init__.py), or another thread may import it in the meantime: then its
@overload is registered after that, and the call would not be known. So a name of an nbprop module that Numba has no
type for is looked up again in what has been registered by then.
"""

from typing import Any

from numba import types
from numba.core.typing.templates import AttributeTemplate, infer_getattr


@infer_getattr
class ModuleName(AttributeTemplate):
    """Attributes of modules; those that are not nbprop's, and constants, are left to Numba's own lookup."""

    key = types.Module

    def _resolve(self, module, name):
        if module.pymod.__name__.partition(".")[0] != "nbprop":
            return None
        found = self.context.resolve_module_constants(module, name)  # the import, at a name's first use
        if found is None:
            self.context.refresh()
            found = self.context.resolve_module_constants(module, name)
        return found

    generic_resolve: Any = _resolve  # annotated in Numba as its placeholder, NotImplemented
