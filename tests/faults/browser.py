"The scripts of a page"
from tests.faults import Fault

FAULTS: list[Fault] = []
