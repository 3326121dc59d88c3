"""Many decodes in one process leave nothing behind. The long run: `python tests/hostile/endurance.py 10000`."""

from endurance import endure, grown


def test_nothing_grows_from_decode_to_decode(vlm):
    decodes = 100
    growth = grown(endure(vlm, decodes))
    memory, objects = growth.pop("resident_mb"), growth.pop("objects")
    assert not any(growth.values()), growth
    assert objects < decodes / 10  # one object kept per decode would be 80
    assert memory < 20  # the allocator's own noise; one kept cache per decode would be more
