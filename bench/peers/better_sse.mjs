// better-sse with a channel: node better_sse.mjs PORT FOLDER, where FOLDER has its node_modules
import http from 'node:http'
import { createRequire } from 'node:module'
import { setImmediate } from 'node:timers/promises'

const [port, folder] = process.argv.slice(2)
const { createChannel, createSession } = createRequire(`${folder}/`)('better-sse')
const channel = createChannel()

http.createServer(async (req, res) => {
    const url = new URL(req.url, 'http://localhost')
    if (url.pathname === '/events') return channel.register(await createSession(req, res, { serializer: String }))
    let text = ''
    for await (const part of req) text += part
    for (let i = Number(url.searchParams.get('times') ?? 1); i > 0; i--) {
        channel.broadcast(text, 'tick')
        await setImmediate()
    }
    res.end()
}).listen({ port: Number(port), host: '127.0.0.1', backlog: 4096 })
