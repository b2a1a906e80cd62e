"A browser that has the dictionary, as a layer around an app: it offers the dictionary, and decodes what comes"
from base64 import b64encode
from hashlib import sha256

from cjm_fasthtml_sse.compress import zstd
from tests.contract.support import Exchange, eventually

MAGIC = b'\x5e\x2a\x4d\x18\x20\x00\x00\x00'  # Of RFC 9842: behind it stands the hash of the dictionary


class Decoder:
    "Decodes `dcz` piece by piece: frame by frame, each one with the dictionary"
    def __init__(self, dictionary):
        self.dictionary, self.rest, self.decompressor = zstd.ZstdDict(dictionary, is_raw=True), MAGIC+sha256(dictionary).digest(), None

    def __call__(self, data):
        if self.rest:
            n = min(len(self.rest), len(data))
            assert data[:n] == self.rest[:n]
            self.rest, data = self.rest[n:], data[n:]
        text = b''
        while data:
            if self.decompressor is None: self.decompressor = zstd.ZstdDecompressor(self.dictionary)
            text += self.decompressor.decompress(data)
            data = self.decompressor.unused_data
            if self.decompressor.eof: self.decompressor = None
        return text


class Decoding:
    "`wire` has the bytes of each response that was encoded, as they were sent"
    def __init__(self, app, path, dictionary, accept='gzip, br, dcz'):
        self.app, self.path, self.dictionary, self.wire = app, path, dictionary, []
        offer = b64encode(sha256(dictionary).digest()).decode()
        self.headers = [(b'accept-encoding', accept.encode()), (b'available-dictionary', f':{offer}:'.encode())]

    @classmethod
    async def of(cls, app, page='/', **kw):
        "Load the page and the dictionary that it names"
        async with Exchange(app, 'GET', page) as r: await eventually(lambda: r.over)
        path = r.body.decode().partition('/_sse/dictionary-')[2].partition('"')[0]
        async with Exchange(app, 'GET', f'/_sse/dictionary-{path}') as r: await eventually(lambda: r.over)
        found = cls(app, f'/_sse/dictionary-{path}', r.body, **kw)
        found.response = r
        return found

    async def __call__(self, scope, receive, send):
        if scope['type'] != 'http': return await self.app(scope, receive, send)
        headers, decode = [(k, v) for k, v in scope['headers'] if k != b'accept-encoding'], None
        async def _send(message):
            nonlocal decode
            if message['type'] == 'http.response.start':
                if (b'content-encoding', b'dcz') in message['headers']:
                    decode = Decoder(self.dictionary)
                    self.wire.append(b'')
            elif decode and message.get('body'):
                self.wire[-1] += message['body']
                message = {**message, 'body': decode(message['body'])}
            await send(message)
        await self.app({**scope, 'headers': headers+self.headers}, receive, _send)
