"Messages: what a broadcast does, and who gets it"
from tests.faults import Fault

FAULTS: list[Fault] = []
