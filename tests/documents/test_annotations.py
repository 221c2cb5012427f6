"""Public functions are annotated: every parameter and the result, with names that resolve."""

import inspect
import typing

import nbprop

# Those that are not yet, by the packages that they are in; a function that is done is to be taken off.
NOT_YET = {
    "autodiff": "backward fisher_product forward gauss_newton_operator gauss_newton_product hessian hessian_operator "
    "hvp jacobian jacobian_operator jvp per_sample_grads value value_and_grad vjp",
    "optimizers": "adagrad adam adamw clip_norm clip_value lion momentum nesterov optimizer_state rmsprop rprop sgd",
    "solvers": "fit_many lbfgs_state lbfgs_step least_squares lm_state lm_step minimize objective",
    "others": "export_c share",
}


def test_public_functions_are_annotated():
    missing = set()
    for name in nbprop.__all__:
        function = getattr(nbprop, name)
        if not inspect.isclass(function) and callable(function):
            function = getattr(function, "py_func", function)
            wanted = {*inspect.signature(function).parameters, "return"}
            if set(typing.get_type_hints(function)) != wanted:
                missing.add(name)
    assert missing == {name for names in NOT_YET.values() for name in names.split()}
