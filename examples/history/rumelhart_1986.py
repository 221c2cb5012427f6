"""Rumelhart, Hinton and Williams 1986: hidden units that learn to represent what nobody told them.

The problems of "Learning representations by back-propagating errors" (Nature 323, pp. 533-536) and of "Learning
internal representations by error propagation" (Parallel Distributed Processing 1, chapter 8): XOR, parity, encoding,
mirror symmetry, T against C, two family trees, a shift register and sequences in nets with shared weights. How each is
learned is in rumelhart/: learning.py, problems.py, family_trees.py, iterative.py.

Run: python examples/history/rumelhart_1986.py [problem ...] [--seed N] [--picture PATH]
"""

import numpy as np

import nbprop
from command import options
from rumelhart import family_trees, iterative, problems
from rumelhart.learning import outputs


def all_right(net, params, x, yes):
    """Every output on the right side of 0.5."""
    return bool(((outputs(net, params, x) > 0.5) == yes).all())


def xor(seed, quick=False):
    """PDP p. 331: one hidden unit with direct connections, 558 sweeps; p. 332: two hidden units."""
    sweeps, net, params = problems.xor(seed)
    x = problems.bits(2)
    two, other, weights = problems.xor(seed, hidden=2)
    return {
        "reproduced": all_right(net, params, x, problems.parity_of(x)),
        "sweeps": sweeps,
        "two_hidden_units_solve_it": all_right(other, weights, x, problems.parity_of(x)),
        "sweeps_with_two": two,
    }


def parity(seed, quick=False):
    """PDP p. 334: four bits, four hidden units, 2,825 presentations of each of the sixteen patterns."""
    sweeps, net, params = problems.parity(seed)
    x = problems.bits(4)
    return {"reproduced": all_right(net, params, x, problems.parity_of(x)), "sweeps": sweeps}


def encoder(seed, quick=False):
    """PDP p. 337, table 5: eight patterns through three hidden units, and the code found for each."""
    sweeps, net, params = problems.encoder(seed)
    codes = hidden_codes(net, params, np.eye(8))
    return {
        "reproduced": all_right(net, params, np.eye(8), np.eye(8) == 1),
        "sweeps": sweeps,
        "codes": [" ".join(f"{value:.1f}" for value in code) for code in codes],
    }


def hidden_codes(net, params, x):
    """The activities of the first layer, (n, units): it is a net of its own, on its part of the parameters."""
    first = nbprop.network(net.input_shape, net.layers[0])
    return outputs(first, params[: first.n_params], x)


def symmetry(seed, quick=False):
    """Nature p. 534, figure 1: weights antisymmetric about the middle, in the ratio 1:2:4; 1,425 sweeps."""
    sweeps, net, params = problems.symmetry(seed)
    x = problems.bits(6)
    weights = nbprop.views(net, params)["0.dense.weight"]
    antisymmetry = float(np.abs(weights + weights[::-1]).max() / np.abs(weights).max())
    sizes = np.sort(np.abs(weights[:3]), axis=0)
    return {
        "reproduced": all_right(net, params, x, problems.mirror_symmetric(x)) and antisymmetry < 0.01,
        "sweeps": sweeps,
        "largest_sum_of_mirror_weights": round(antisymmetry, 5),
        "ratio": ":".join(f"{size:.1f}" for size in (sizes / sizes[0]).mean(1)),
    }


def t_c(seed, quick=False):
    """PDP pp. 348-352: 5,000 to 10,000 presentations of each of eight patterns; right at all positions of a letter."""
    sweeps, net, params = problems.t_c(seed)
    places = [(row, column) for row in range(problems.RETINA) for column in range(problems.RETINA)]
    right = [all_right(net, params, *problems.letters(*place)) for place in places]
    return {"reproduced": all(right), "sweeps": sweeps, "places": f"{sum(right)} of {len(places)}"}


def trees(seed, quick=False):
    """Nature p. 535, figure 4: six units come to represent nationality, generation and branch; new facts are inferred.

    "Reproduced" is learning (98 of 100 facts) and meaning (R^2 of each above 0.5). The letter reports one run, in
    which four of four held-out facts came out right; Hinton (1986) reports two, with four and three.
    """
    net, params, right, held_out = family_trees.learn(seed)
    found = family_trees.meanings(family_trees.person_weights(net, params))
    learned = int(right.sum() - right[held_out].sum())
    return {
        "reproduced": learned >= 98 and all(share > 0.5 for _, _, share in found.values()),
        "learned_of_100": learned,
        "held_out_right_of_4": int(right[held_out].sum()),
        **{f"{name}_r2": round(share, 3) for name, (_, _, share) in found.items()},
        **{f"{name}_best_unit": round(abs(correlation), 3) for name, (_, correlation, _) in found.items()},
    }


def shift_register(seed, quick=False):
    """PDP pp. 354-358: three units learn to shift a pattern, in two steps with the same weights."""
    sweeps, net, params = iterative.shift_register(seed)
    x = problems.bits(3)
    return {"reproduced": all_right(net, params, x, np.roll(x, 1, axis=1) == 1), "sweeps": sweeps}


def sequences(seed, quick=False):
    """PDP pp. 358-360: 30 hidden units learn to complete sequences, in 260 sweeps; five sequences are held out."""
    sweeps, _, _, held_out, right = iterative.sequences(seed)
    learned = np.delete(right, held_out, axis=0)
    return {
        "reproduced": bool(learned.all()),
        "sweeps": sweeps,
        "held_out_digits_right_of_20": int(right[held_out].sum()),
    }


PROBLEMS = (xor, parity, encoder, symmetry, t_c, trees, shift_register, sequences)


def main():
    parser = options(__doc__, 3, "what was learned, the two family trees if trees alone is named,")
    known = {problem.__name__: problem for problem in PROBLEMS}
    parser.add_argument("problems", nargs="*", metavar="problem", help=f"of {', '.join(known)}; all by default")
    given = parser.parse_args()
    unknown = [name for name in given.problems if name not in known]
    if unknown:
        parser.error(f"unknown {', '.join(unknown)}; known: {', '.join(known)}")
    for problem in [known[name] for name in given.problems] or PROBLEMS:
        result = problem(given.seed)
        print(f"{problem.__name__}: {'reproduced' if result.pop('reproduced') else 'NOT REPRODUCED'}")
        print(f"  {problem.__doc__.splitlines()[0]}")
        for name, value in result.items():
            print(f"  {name.replace('_', ' ')}: {value if not isinstance(value, list) else ', '.join(value)}")
    if given.picture:
        from rumelhart import pictures

        draw = pictures.draw_trees if given.problems == ["trees"] else pictures.draw_problems
        draw(given.seed, given.picture)
        print("picture:", given.picture)


if __name__ == "__main__":
    main()
