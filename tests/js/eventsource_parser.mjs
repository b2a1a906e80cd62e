// Each line of stdin is one stream: a JSON list of its chunks in base64. The answer is one line:
// the events as [event, data, last event id, retry], read by npm's eventsource-parser.
import { createInterface } from 'node:readline'
import { pathToFileURL } from 'node:url'

const { createParser } = await import(pathToFileURL(process.argv[2]).href)

/** @param {string[]} chunks */
function parse(chunks) {
  /** @type {unknown[]} */
  const events = []
  let id = '', retry = null
  const parser = createParser({
    onId: v => { id = v },  // Also called for an event without data, which is not dispatched
    onRetry: v => { retry = v },
    onEvent: e => { events.push([e.event ?? 'message', e.data, id, retry]); retry = null },
  })
  const decoder = new TextDecoder()
  for (const c of chunks) parser.feed(decoder.decode(Buffer.from(c, 'base64'), { stream: true }))
  return events
}

for await (const line of createInterface({ input: process.stdin }))
  process.stdout.write(JSON.stringify(parse(JSON.parse(line))) + '\n')
