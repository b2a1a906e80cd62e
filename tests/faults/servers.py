"Servers, requests, the multiplexer at the server"
from tests.faults import Fault

FAULTS: list[Fault] = []
