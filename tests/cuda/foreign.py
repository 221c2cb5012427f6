"""Another library's arrays on the device."""


class Foreign:
    """Another library's array, by the CUDA array interface."""

    def __init__(self, array, **changes):
        self._array, self._changes = array, changes

    @property
    def __cuda_array_interface__(self):
        return self._array.__cuda_array_interface__ | self._changes
