"""Faults that the contract suites must catch: each is a bug that this library had, or was close to having

`make faults` puts one after another into a copy of the package and runs `tests/contract` on it.
"""
from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    words: str      # What users would see
    file: str       # Within the package
    suite: str      # File in tests/contract that runs first; or the one that judges, from tests/ on, for what has no public name
    changes: tuple  # Pairs: text that stands once in the file, and what stands there instead

    def __post_init__(self):
        if not self.changes or any(len(o)!=2 or o[0]==o[1] for o in self.changes): raise ValueError(f'`changes` must be pairs (old, new), got {self.changes!r}')

    def apply(self, package):
        "Put the fault into the package in the folder `package`"
        path = package/self.file
        text = path.read_text(encoding='utf-8')
        for old,new in self.changes:
            if (n := text.count(old))!=1: raise LookupError(f'{self.file} has {n} times, not once: {old!r}')
            text = text.replace(old, new)
        path.write_text(text, encoding='utf-8')
