"""Numbers with units, as they appear in plans, labels and error messages."""


def format_bytes(count: int) -> str:
    """Return a number of bytes in the binary unit that fits.

    >>> from jax_ntk_sketch._units import format_bytes
    >>> [format_bytes(n) for n in (512, 2048, 3 * 2**20, 5 * 2**29)]
    ['512 B', '2.0 KiB', '3.0 MiB', '2.5 GiB']
    """
    if count < 1024:
        return f"{count} B"
    size = float(count)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        size /= 1024
        if size < 1024 or unit == "TiB":
            break
    return f"{size:.1f} {unit}"
