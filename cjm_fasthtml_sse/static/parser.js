// @ts-check
// Parsing an event stream, by the rules of the WHATWG specification ("Interpreting an event stream").

/**
 * Who is told what was parsed.
 * @typedef {object} StreamReader
 * @property {(type: string, data: string | null, id: string, own: boolean) => void} block  a blank line ended a block; `data` is null where it had none, `own` says whether the
 *   id in force came with this block
 * @property {(text: string) => void} comment
 * @property {(ms: number) => void} retry
 */

/** Parses the text of an event stream, in pieces of any size. */
class EventStreamParser {
  /**
   * @param {StreamReader} reader
   * @param {string} lastEventId  in force at the start: ids outlive a connection
   */
  constructor(reader, lastEventId) {
    this.reader = reader;
    this.id = lastEventId;
    this.rest = '';          // a line whose end has not come yet
    this.afterCR = false;    // the LF of a CRLF may come with the next piece
    this.type = '';
    this.own = false;
    /** @type {string[]} */
    this.data = [];
  }

  /** @param {string} text */
  feed(text) {
    if (this.afterCR && text[0] === '\n') text = text.slice(1);
    else if (!text) return;
    this.afterCR = text.endsWith('\r');
    const lines = text.split(/\r\n|\r|\n/);
    lines[0] = this.rest + lines[0];
    this.rest = lines.pop() ?? '';
    for (const line of lines) this.line(line);
  }

  /** @param {string} line */
  line(line) {
    if (!line) return this.end();
    const colon = line.indexOf(':');
    if (colon === 0) return this.reader.comment(line.slice(1));
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? '' : line.slice(line[colon + 1] === ' ' ? colon + 2 : colon + 1);
    if (field === 'data') this.data.push(value);
    else if (field === 'event') this.type = value;
    else if (field === 'id' && !value.includes('\0')) [this.id, this.own] = [value, true];
    else if (field === 'retry' && /^[0-9]+$/.test(value)) this.reader.retry(Number(value));
  }

  end() {
    const { type, data, own } = this;
    this.type = '';
    this.own = false;
    this.data = [];
    this.reader.block(type || 'message', data.length ? data.join('\n') : null, this.id, own);
  }
}
