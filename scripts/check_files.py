"""Check that files are of 250 kB at most, and that text files end with one newline."""

import sys
from pathlib import Path

LIMIT = 250_000  # bytes


def faults(path: Path) -> list[str]:
    """Return a sentence for each rule that a file breaks."""
    said = []
    content = path.read_bytes()
    if len(content) > LIMIT:
        said.append(f"{path} has {len(content):,} bytes; {LIMIT:,} are allowed")
    if content and b"\0" not in content:  # text
        if not content.endswith(b"\n"):
            said.append(f"{path} does not end with a newline")
        elif content.endswith(b"\n\n"):
            said.append(f"{path} ends with empty lines")
    return said


if __name__ == "__main__":
    sentences = [sentence for name in sys.argv[1:] for sentence in faults(Path(name))]
    print("\n".join(sentences), file=sys.stderr, end="\n" if sentences else "")
    sys.exit(bool(sentences))
