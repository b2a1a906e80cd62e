"The six modules, pages, jobs"
from tests.faults import Fault

FAULTS: list[Fault] = []
