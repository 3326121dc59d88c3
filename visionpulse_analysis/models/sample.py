"""How tokens are drawn, as asked for; torch is not needed to say it."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from visionpulse_analysis._util.checks import check_fields, check_temperature


@dataclass(frozen=True)
class Sample:
    """How to draw tokens: at a temperature, from the `top_k` likeliest, and of these from the few that hold `top_p`.

    In this order, with the same tokens left as in ``generate`` of transformers.

    Parameters
    ----------
    temperature : float, above 0
        Divides the logits; 1 leaves the model's own distribution.
    top_p : float in (0, 1]
        Draw from the fewest most probable tokens that hold this much of the probability that `top_k` leaves; 1 from
        all.
    top_k : int, at least 1, optional
        Draw from so many tokens, and those as likely as the last of them.

    Raises
    ------
    ValueError
        A parameter is out of range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        check_temperature(self.temperature, "; leave sample (--temperature) out for greedy decoding")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {self.top_k}")

    def to_dict(self) -> dict:
        """The parameters by name, JSON-ready."""
        return asdict(self)
