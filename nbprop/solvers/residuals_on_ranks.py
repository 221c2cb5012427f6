"""Residuals and their Jacobian, whose rows several ranks compute: the rows are the same on any number of them."""

import numpy as np

from nbprop.autodiff.derivatives import jacobian
from nbprop.autodiff.operators import outputs
from nbprop.cluster.parts import check_same_data, flat, rows_of, total_samples
from nbprop.cluster.ranks import ROWS, processor
from nbprop.solvers.residuals import Residuals


class ResidualsOnRanks(Residuals):
    """As `Residuals`: each rank computes the rows of its samples, and all get all of them."""

    def __init__(self, plan, x, target, weights, loss, f_scale, free, ranks):
        ranks.agree(
            processor()
            | {"the network": repr(plan.net), "dtype": str(plan.dtype), "the plan's batch": plan.batch}
            | {"pieces": ranks.pieces, "whether data is split": ranks.split, "the penalties": repr(plan.penalty)}
            | {"whether there are weights": weights is not None, "the free parameters": free.size}
        )
        samples, first = total_samples(ranks, len(x))
        check_same_data(ranks, flat, x=x, target=target, weights=weights)
        self.ranks = ranks
        bounds = [rows_of(rank, ranks.size, samples, ranks.pieces) for rank in range(ranks.size)]
        self._first, self._stop = bounds[ranks.rank]
        self._samples = [stop - start for start, stop in bounds]
        self._own = x[self._first - first : self._stop - first]
        if ranks.split:
            target, weights = self._whole(target), None if weights is None else self._whole(weights)
        super().__init__(plan, x, target, weights, loss, f_scale, free)

    def _outputs(self, params):
        """The outputs of all samples, from all ranks."""
        with self.ranks.round(ROWS, params):
            found = np.empty((sum(self._samples), self.plan.unit_size), self.plan.dtype)
            if len(self._own):
                own = outputs(self.plan, params, self._own, self._work)
                found[self._first : self._stop] = own.reshape(len(own), -1)
            self.ranks.rows(found, self._samples)
        return found.reshape(-1).astype(np.float64)

    def _fill(self, matrix, params):
        """All rows of dy/dparams."""
        rows = self.plan.unit_size
        with self.ranks.round(ROWS, params):
            for start in range(0, len(self._own), self.plan.batch):
                piece = self._own[start : start + self.plan.batch]
                first = (self._first + start) * rows
                jacobian(self.plan, params, piece, matrix[first : first + len(piece) * rows], self._work)
            self.ranks.rows(matrix, [count * rows for count in self._samples])

    def _whole(self, array):
        """The rows of all ranks."""
        found = np.empty((sum(self._samples), *array.shape[1:]), array.dtype)
        found[self._first : self._stop] = array
        return self.ranks.rows(found, self._samples)
