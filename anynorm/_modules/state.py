"""What the norms that hold parameters have in common: their state, what they are compared by, how they are written."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from anynorm._arrays import check_array
from anynorm._lengths import fits
from anynorm._libraries import dtype_name, library_named, library_of
from anynorm._modules.loading import IncompatibleKeys, converted, matched, prefixes
from anynorm._pytrees import register
from anynorm._wording import arrays_of_library, describe, module_of, sentence, with_article

_NAMES_LISTED = 4


class HoldsParameters:
    """Parameters by name, and what can be done with them whichever norm they belong to."""

    _parameter_names: tuple[str, ...] = ()

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        register()

    def state_dict(self) -> dict[str, Any]:
        """Return the parameters by name, the arrays themselves and no copies."""
        return {name: getattr(self, name) for name in self._parameter_names if getattr(self, name) is not None}

    def load_state_dict(self, state: Mapping[str, Any], *, strict: bool = True, prefix: str = "") -> IncompatibleKeys:
        """Set the parameters by name, from arrays of this library or from any that NumPy can read.

        Parameters
        ----------
        state : mapping from name to array
            The names that `state_dict` returns, or what other libraries call them: ``gamma``, ``scale`` and ``g`` for
            ``weight``, ``beta`` and ``offset`` for ``bias``; for the ``scale`` of `ScaleNorm`, which may also be of
            shape (1,), ``g``, ``gamma`` and ``weight``. So a checkpoint of torch, Flax, Keras, Haiku or x-transformers
            fits. Values are converted to the dtype and device of the present parameters.
        strict : bool
            Whether to refuse a state that lacks a parameter or holds another name. If False, these are ignored.
        prefix : str
            What the names of this norm begin with in the state of a model, such as ``"enc.0.norm1."``. All other names
            are ignored.

        Returns
        -------
        missing_keys, unexpected_keys : lists of str
            The names that the state lacks, and those beginning with the prefix that are none of this norm's. A named
            pair, as torch returns it; both are empty if ``strict``.

        Raises
        ------
        ValueError
            If a name is missing or unknown and ``strict``, a parameter is there by two names, or a shape differs.
            Nothing is changed then.
        TypeError
            If a value is not an array with a real floating dtype. Nothing is changed then either.
        """
        if not isinstance(state, Mapping):
            do = "pass what state_dict() returns"
            raise TypeError(sentence("state", "be a mapping from name to array", describe(state), do))
        if not isinstance(prefix, str):
            raise TypeError(sentence("prefix", "be a str", describe(prefix), "pass one such as 'enc.0.norm1.'"))
        present = self.state_dict()
        keys, left = matched(present, state, prefix)
        if strict and (left.missing_keys or left.unexpected_keys):
            must = f"hold {', '.join(prefix + name for name in present)}, as {self!r} does"
            raise ValueError(sentence("state", must, f"one {_lacks(left)}", _instead(present, state, prefix)))
        loaded = {name: converted(name, state[key], present[name]) for name, key in keys.items()}
        for name, value in loaded.items():
            setattr(self, name, value)
        return left

    def _require_lengths(self, x: Any, lengths: tuple[int, ...]) -> None:
        """Raise ValueError unless the last axes of x are as long as the parameters say."""
        check_array("x", x)
        shape = tuple(x.shape)
        if not fits(lengths, shape[-len(lengths) :]):
            must = f"have shape (..., {', '.join(map(str, lengths))}) for {self!r}"
            do = f"pass x of {'that length' if len(lengths) == 1 else 'these lengths'} along its last axes"
            raise ValueError(sentence("x", must, str(shape), do))

    def _require_own_library(self, x: Any) -> None:
        """Raise TypeError where x is of another library than the parameters: it is x that was passed, not they."""
        of_x = check_array("x", x)
        for parameter in self.state_dict().values():
            try:
                own = library_of(parameter)
            except TypeError:  # no array, as the function has said
                return
            if own is of_x or (own.name == "numpy" and of_x.takes_others):
                continue
            must = f"be {with_article(arrays_of_library(own.name))}, as the parameters of {self!r} are"
            do = f"convert x, or make the norm with xp={module_of(of_x.name)}"
            if library_named(of_x.namespace) is not of_x:  # in which parameters would be other arrays than x
                do = "convert x, or pass it to the function of this norm with parameters of its own kind"
            raise TypeError(sentence("x", must, describe(x), do)) from None

    def _config(self) -> tuple[Any, ...]:
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        """Equal configuration: norm, shapes, dtype, eps and the like; parameter values are not compared."""
        if type(other) is not type(self):
            return NotImplemented
        return self._config() == other._config()

    def __hash__(self) -> int:
        return hash((type(self), self._config()))

    def _dtype_name(self) -> str | None:
        for parameter in self.state_dict().values():
            return dtype_name(parameter.dtype) if hasattr(parameter, "dtype") else None
        return None

    def _repr(self, shape: Any, **options: Any) -> str:
        written = ", ".join([str(shape), *(f"{name}={value}" for name, value in options.items())])
        return f"{type(self).__name__}({written})"


def _lacks(left: IncompatibleKeys) -> str:
    """What is wrong with the names of a state; of many names, as of a whole model, the first."""
    both = ("without", left.missing_keys), ("with unknown", left.unexpected_keys)
    return " and ".join(f"{what} {_listed(sorted(names))}" for what, names in both if names)


def _listed(names: list[str]) -> str:
    if len(names) <= _NAMES_LISTED:
        return ", ".join(names)
    return f"{', '.join(names[:_NAMES_LISTED])}, ... ({len(names)} names)"


def _instead(names: Collection[str], state: Mapping[str, Any], prefix: str) -> str:
    """What to do about it: the prefix nearest to the given one, if a norm of this kind is there by another."""
    import difflib  # for a message alone

    others = prefixes(names, state)
    if prefix in others or not others:
        return "pass exactly these names, or strict=False"
    nearest = difflib.get_close_matches(prefix, others, n=1, cutoff=0.0)[0]
    return f"pass prefix={nearest!r}" if len(others) == 1 else f"pass prefix=, such as {nearest!r}"
