"""Which kinds of units get gates, and the names that published scripts have for them."""

from collections.abc import Iterable


# In this order the gates draw their random numbers.
KINDS = ("heads", "neurons", "attention", "feed_forward", "hidden")

# CoFi's spelling; its README has the head token without the plural too.
_PUBLISHED = {
    "structured_heads": ("heads",),
    "structured_head": ("heads",),
    "structured_mlp": ("neurons",),
    "layer": ("attention", "feed_forward"),
}


def check_kinds(kinds: Iterable[str]) -> tuple[str, ...]:
    """These kinds of units, each once and in a fixed order.

    Raises:
        ValueError: if there is none or an unknown one.
    """
    kinds = [kinds] if isinstance(kinds, str) else list(kinds)
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise ValueError(f"There is no kind of unit called {unknown[0]!r}; choose from {', '.join(KINDS)}.")
    if not kinds:
        raise ValueError(f"No kind of unit is given, so nothing could be pruned; choose from {', '.join(KINDS)}.")
    return tuple(kind for kind in KINDS if kind in kinds)


def parse_kinds(pruning_type: str) -> tuple[str, ...]:
    """Read kinds of units from tokens joined by `+`, in the published spelling of CoFi or in ours.

    `structured_heads` (or `structured_head`) are heads, `structured_mlp` are neurons, `layer` are attention and
    feed_forward, and `hidden` is what it is in both.

    Raises:
        ValueError: for an unknown token or none.
    """
    kinds: list[str] = []
    for token in pruning_type.split("+"):
        token = token.strip()
        found = _PUBLISHED.get(token, (token,) if token in KINDS else ())
        if not found:
            raise ValueError(
                f"{token!r} in pruning_type={pruning_type!r} is no kind of unit; join some of "
                f"{', '.join((*_PUBLISHED, *KINDS))} by '+'."
            )
        kinds += found
    return check_kinds(kinds)
