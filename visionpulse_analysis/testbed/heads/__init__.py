"""Heads, small modules that are trained beside a frozen model: their data, their losses, and one loop for all."""

# By which names heads are trained; what each takes, `catalogue` says, with torch.
HEADS = (
    "covipal", "covipal-stage1", "covipal-stage2", "covipal-shuffled", "covipal-layer2", "relevance",
    "relevance-layer4", "relevance-shuffled", "exits", "exits-shuffled", "exits-steps", "exits-steps-shuffled",
)  # fmt: skip


def check_head(name: str) -> None:
    """Raise ValueError where no head of that name can be trained."""
    if name not in HEADS:
        raise ValueError(f"unknown head {name!r}; known: {', '.join(HEADS)}")
