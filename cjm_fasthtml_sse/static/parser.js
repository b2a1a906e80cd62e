// @ts-check
// Parses an event stream by the rules of the WHATWG specification: text in pieces of any size comes in, blocks,
// comments and `retry:` go out to a reader. Each source has a parser for each connection.
// `own` says that an id came with its block; without one, the id of an earlier block is in force.

/** Takes the text in pieces of any size. */
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
    const [, field, value = ''] = /** @type {string[]} */ (/^([^:]*)(?:: ?([^]*))?/.exec(line));
    if (!field) this.reader.comment(value);
    else if (field === 'data') this.data.push(value);
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
