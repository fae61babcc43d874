"""Seeds: one integer per run, and from it a sequence of its own for every purpose."""

import hashlib


def derive(seed: int, purpose: str) -> int:
    """Return the seed of one purpose, in [0, 2**31).

    Generators of equal seeds draw equal numbers: the noise of an action would repeat that of the
    world. Neighbouring seeds are no remedy, since runs, environments and copies count upwards.

    Args:
        seed: Of the run.
        purpose: What the numbers are for.
    """
    digest = hashlib.blake2b(f"{seed} {purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % 2**31
