"""Two family trees (letter, pp. 534-535, figures 2 to 4; Hinton 1986, Cognitive Science Society 8, pp. 1-12).

104 facts such as (Colin, aunt, {Jennifer, Margaret}) about 24 people and 12 relationships. One unit stands for each
person: nothing in the input says who is English, old, or related to whom. Six units must tell the next layer all it
needs to know about a person, and come to represent nationality, generation and branch of the family.
"""

import numpy as np

import nbprop
from rumelhart.learning import Learner, outputs, start, units

ENGLISH, ITALIAN = (
    names.split()
    for names in (
        "Christopher Penelope Andrew Christine Margaret Arthur Victoria James Jennifer Charles Colin Charlotte",
        "Roberto Maria Pierro Francesca Gina Emilio Lucia Marco Angela Tomaso Alfonso Sophia",
    )
)
PEOPLE = ENGLISH + ITALIAN
COUPLES = {
    "Christopher": "Penelope",
    "Andrew": "Christine",
    "Arthur": "Margaret",
    "James": "Victoria",
    "Charles": "Jennifer",
}
CHILDREN = {
    "Christopher": ("Arthur", "Victoria"),
    "Andrew": ("James", "Jennifer"),
    "James": ("Colin", "Charlotte"),
}
MEN = {"Christopher", "Andrew", "Arthur", "James", "Charles", "Colin"}
RELATIONS = [
    *("father", "mother", "husband", "wife", "son", "daughter"),
    *("uncle", "aunt", "brother", "sister", "nephew", "niece"),
]

# What the net is never told, for each person of either tree: grandparents 1, parents 0, children -1; Christopher's
# branch 1, Andrew's -1, both 0.
GENERATION = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0, -1, -1] * 2, float)
BRANCH = np.array([1, 1, -1, -1, 1, 1, 1, -1, -1, -1, 0, 0] * 2, float)
NATIONALITY = np.repeat([1.0, -1.0], 12)
MEANINGS = {"nationality": NATIONALITY, "generation": GENERATION, "branch": BRANCH}


def english_facts():
    """{(person, relationship): set of people} of one tree, from its couples and children."""
    facts, spouse = {}, {}

    def tell(person, man_is, woman_is, of):
        relation = man_is if person in MEN else woman_is
        facts.setdefault((of, relation), set()).add(person)

    for husband, wife in COUPLES.items():
        spouse |= {husband: wife, wife: husband}
        tell(husband, "husband", "wife", wife)
        tell(wife, "husband", "wife", husband)
    for father, siblings in CHILDREN.items():
        parents = (father, spouse[father])
        for child in siblings:
            for parent in parents:
                tell(parent, "father", "mother", child)
                tell(child, "son", "daughter", parent)
            for other in set(siblings) - {child}:
                tell(other, "brother", "sister", child)
        for aunts in CHILDREN.values():
            for parent in set(parents) & set(aunts):
                for aunt in set(aunts) - {parent}:
                    for relative in (aunt, spouse[aunt]):
                        for child in siblings:
                            tell(relative, "uncle", "aunt", child)
                            tell(child, "nephew", "niece", relative)
    return facts


def all_facts():
    """The 104 facts: persons (104,), relationships (104,), the input (104, 36), the wanted output (104, 24)."""
    persons, relations, wanted = [], [], []
    for tree in (ENGLISH, ITALIAN):
        names = dict(zip(ENGLISH, tree, strict=True))
        for (person, relation), answers in sorted(english_facts().items()):
            persons.append(PEOPLE.index(names[person]))
            relations.append(RELATIONS.index(relation))
            wanted.append([other in {names[answer] for answer in answers} for other in PEOPLE])
    x = np.concatenate([np.eye(24)[persons], np.eye(12)[relations]], 1)
    return np.array(persons), np.array(relations), x, np.array(wanted, float)


def network():
    """24 people and 12 relationships -> 6 and 6 units -> 12 -> 6 -> 24 people (figure 3)."""
    people = [nbprop.slicing(0, 24), units(6)]
    relationships = [nbprop.slicing(24, 36), units(6)]
    return nbprop.network((36,), nbprop.concat(people, relationships), units(12), units(6), units(24))


def about_other_generations():
    """Which facts are about parents, children, uncles, aunts, nephews and nieces, (104,): 72.

    They follow from other facts. Who somebody's wife or sister is, the other facts imply at best indirectly.
    """
    relations = all_facts()[1]
    return ~np.isin(relations, [RELATIONS.index(name) for name in ("husband", "wife", "brother", "sister")])


def learn(seed, among=None):
    """Learn 100 facts; returns (net, params, facts that are answered right (104,), which four were held out (4,)).

    The four are drawn from the facts `among` (104,) bool, by default those about other generations.

    The first 20 sweeps, the momentum, the decay of 0.2 % and the margin of 0.2 are the letter's (p. 535). With its
    rate of 0.01 and 1,500 sweeps, from weights within 0.3, the outputs only reach their means. Here weights start
    within 1, the decay sets in after 1,500 sweeps, and learning continues to 12,000 at a higher rate.
    """
    _, _, x, wanted = all_facts()
    among = about_other_generations() if among is None else among
    held_out = np.random.default_rng(seed).choice(np.flatnonzero(among), 4, replace=False)
    learned = np.setdiff1d(np.arange(104), held_out)
    net = network()
    params = start(net, seed, spread=1.0)
    learner = Learner(net, params, x[learned], wanted[learned])
    learner.sweep(20, rate=0.005, momentum=0.5, good_enough=0.2)
    learner.sweep(1_480, rate=0.02, momentum=0.9, good_enough=0.2)
    learner.sweep(10_500, rate=0.05, momentum=0.9, good_enough=0.2, decay=0.002)
    # Right: everybody who should be on above 0.5, everybody else below (Hinton 1986).
    right = ((outputs(net, params, x) > 0.5) == (wanted > 0.5)).all(1)
    return net, params, right, held_out


def person_weights(net, params):
    """The weights from the 24 people to the six units that encode them, (24, 6)."""
    return nbprop.views(net, params)["0.concat.0.1.dense.weight"]


def explained(codes, meaning):
    """How much of a meaning (24,) is a linear function of the codes (24, 6): R^2. For noise it would be 0.26."""
    columns = np.column_stack([codes, np.ones(24)])
    rest = meaning - columns @ np.linalg.lstsq(columns, meaning, rcond=None)[0]
    return 1 - float(rest @ rest / np.sum((meaning - meaning.mean()) ** 2))


def meanings(weights):
    """{meaning: (the unit that represents it best, its correlation, R^2 of all six)}."""
    found = {}
    for name, meaning in MEANINGS.items():
        correlations = [float(np.corrcoef(weights[:, unit], meaning)[0, 1]) for unit in range(6)]
        best = int(np.argmax(np.abs(correlations)))
        found[name] = best, correlations[best], explained(weights, meaning)
    return found
