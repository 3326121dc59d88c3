"""Tokens as pieces of one text: what each adds to those before it, so that the pieces joined are the whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

UNREADABLE = "\ufffd"  # what decoding shows for bytes that are no whole character, or not yet
LONGEST, MOST_KNOWN = 8, 100_000  # tokens of a passage that is remembered, and how many are


class Decoder:
    """Decodes short passages of tokens, each once: asking a tokenizer takes as long as the rest of a step."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self._known: dict[tuple[int, ...], str] = {}

    def __call__(self, ids: Sequence[int]) -> str:
        """The text of some tokens, as the model wrote it: spaces before marks are left where they are."""
        passage = tuple(ids)
        text = self._known.get(passage)
        if text is None:
            text = self.tokenizer.decode(list(passage), clean_up_tokenization_spaces=False)
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            if len(passage) <= LONGEST:
                self._known[passage] = text
        return text

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """What each of some tokens adds to the text; joined, the text."""
        growing = Pieces(self)
        listed = [growing.add(token) for token in ids]
        return [*listed[:-1], listed[-1] + growing.rest()] if listed else []


class Pieces:
    """The growing text of one row.

    Decoded one by one, tokens lose the spaces that a tokenizer keeps in its marks (``▁the``), and characters whose
    bytes are several tokens become signs for the unreadable. So each token is decoded behind those before it. A token
    that leaves a character unfinished adds nothing, and the one that finishes it adds the character.
    """

    def __init__(self, decoder: Decoder):
        self.decoder = decoder
        self._known: list[int] = []  # the tokens of the last piece, which the next is decoded behind
        self._new: list[int] = []  # tokens that no piece holds yet

    def add(self, token: int) -> str:
        """The text that a token adds."""
        self._new.append(token)
        before, now = self.decoder(self._known), self.decoder([*self._known, *self._new])
        if now.endswith(UNREADABLE) or len(now) <= len(before):
            return ""
        self._known, self._new = self._new, []
        return now[len(before) :]

    def would_add(self, token: int) -> str:
        """The same, without taking it."""
        before, now = self.decoder(self._known), self.decoder([*self._known, *self._new, token])
        return now[len(before) :]

    def rest(self) -> str:
        """What is left where the text ends here: bytes that never became a character."""
        before, now = self.decoder(self._known), self.decoder([*self._known, *self._new])
        self._known, self._new = [*self._known, *self._new], []
        return now[len(before) :]
