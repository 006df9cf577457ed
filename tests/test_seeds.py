"""Seeds are a function of names and numbers."""

from segcore.seeds import derived_seed


def test_seeds_depend_on_every_part_and_never_change() -> None:
    assert derived_seed(0, "augment", 5) == 4338464573090083236
    seeds = {derived_seed(a, b, c) for a in range(5) for b in ("x", "y") for c in range(5)}
    assert len(seeds) == 50
    assert all(0 <= seed < 2**63 for seed in seeds)
