"""How a kernel's arguments are read from a frame and a row, and how arrays are described to compiled code."""

from llvmlite import ir
from numba import types
from numba.core import cgutils

from nbprop.compiler.intrinsics import WORD, _pointer, make_array
from nbprop.compiler.jit import intrinsic


def kernel_arguments(contract, null_absent=True):
    """An intrinsic ``bind(frame, row, part, parts)``: the tuple of arguments that a kernel takes.

    The row holds the operands (three words each: space, offset, length), then the words of the sizes. An array that was
    not given is empty; with `null_absent`, its address is 0 whatever its offset (see `pointer` in microkernel.py).
    Device kernels do not use addresses, and this would spill their registers.
    """
    frame_words = contract.frame_words

    @intrinsic
    def bind(typingctx, frame, row, part, parts):
        array_type = types.Array(frame.dtype, 1, "C")
        tuple_types = {
            name: types.BaseTuple.from_types((types.int64,) * len(of._fields), of)
            for name, of in contract.tuples.items()
        }
        scalar_types = [tuple_types.get(name, types.int64) for name in contract.scalars]
        tuple_type = types.Tuple((array_type,) * len(contract.arrays) + tuple(scalar_types))

        def codegen(context, builder, signature, values):
            base, words, part_value, parts_value = values
            itemsize = context.get_abi_sizeof(context.get_data_type(frame.dtype))
            position = 0

            def word(address, index):
                return builder.load(_pointer(builder, address, WORD, ir.Constant(WORD, index)))

            bound = []
            for _ in contract.arrays:
                space, offset, length = (word(words, position + k) for k in range(3))
                position += 3
                start = builder.load(_pointer(builder, base, WORD, space))
                absent = builder.icmp_unsigned("==", start, ir.Constant(WORD, 0))
                length = builder.select(absent, ir.Constant(WORD, 0), length)
                address = builder.add(start, builder.mul(offset, ir.Constant(WORD, itemsize)))
                if null_absent:
                    address = builder.select(absent, ir.Constant(WORD, 0), address)
                bound.append(make_array(context, builder, array_type, address, length))
            for name in contract.scalars:
                if name == "part":
                    bound.append(part_value)
                elif name == "parts":
                    bound.append(parts_value)
                elif name in frame_words:
                    bound.append(word(base, frame_words[name]))
                else:
                    fields = [word(words, position + k) for k in range(len(contract.words_of(name)))]
                    position += len(fields)
                    whole = tuple_types.get(name)
                    bound.append(context.make_tuple(builder, whole, fields) if whole else fields[0])
            return context.make_tuple(builder, tuple_type, bound)

        return tuple_type(frame, types.int64, types.int64, types.int64), codegen

    return bind


def describe_arguments(places, description, code_of):
    """An intrinsic ``describe(block, arrays)``: write a description of each array of a tuple, for compiled code.

    Array number i goes to word `places[i] * description` of the block, as five words: data address, rank, address of
    the shape, element code (`code_of` its Numba type), flags (1 contiguous, 2 writable, 4 aligned). The words of an
    argument that was not given (None) are not written.
    """

    @intrinsic
    def describe(typingctx, block, arrays):
        def codegen(context, builder, signature, values):
            given = cgutils.unpack_tuple(builder, values[1], len(arrays.types))
            for place, typed, array in zip(places, arrays.types, given, strict=True):
                if not isinstance(typed, types.Array):
                    continue
                value = cgutils.create_struct_proxy(typed)(context, builder, array)
                shape = cgutils.alloca_once(builder, value.shape.type)
                builder.store(value.shape, shape)
                flags = (typed.layout == "C" or typed.ndim == 0) * 1 + typed.mutable * 2 + typed.aligned * 4
                words = [
                    builder.ptrtoint(value.data, WORD),
                    ir.Constant(WORD, typed.ndim),
                    builder.ptrtoint(shape, WORD),
                    ir.Constant(WORD, code_of(typed.dtype)),
                    ir.Constant(WORD, flags),
                ]
                for k, word in enumerate(words):
                    position = ir.Constant(WORD, place * description + k)
                    builder.store(word, _pointer(builder, values[0], WORD, position))
            return context.get_dummy_value()

        return types.void(block, arrays), codegen

    return describe
