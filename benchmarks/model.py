from __future__ import annotations


def main(*, quick: bool) -> None:
    print(quick)
