"""What to say of an argument that should be a NumPy array and is not."""

_CUDA, _CUDA_MANAGED = 2, 13  # DLDeviceType (dlpack.h)


def in_device_memory(value):
    """Whether a value is an array in a GPU's memory, of whichever library."""
    if isinstance(value, type):
        return False
    if hasattr(value, "__cuda_array_interface__"):
        return True
    return hasattr(value, "__dlpack_device__") and int(value.__dlpack_device__()[0]) in (_CUDA, _CUDA_MANAGED)


def not_numpy(value, wanted="a NumPy array"):
    """What follows the argument's name."""
    if in_device_memory(value):
        return (
            "is in device memory, but this call runs on the CPU; copy it to the host, or let the call run on the "
            'device, where all its arrays lie there and its plan has target="cuda"'
        )
    return f"must be {wanted}, got {type(value).__name__}; convert it once with np.ascontiguousarray"
