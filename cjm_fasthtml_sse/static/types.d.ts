// What the scripts of this folder say to one another. For tsc alone: browsers never load this file.

/**
 * What is known of a connection.
 *
 * - `connecting`    it was never open so far
 * - `active`        open
 * - `reconnecting`  lost; it comes back by itself
 * - `disconnected`  ended on purpose; nothing goes on
 * - `error`         refused for good; nothing goes on
 */
type SSEState = 'connecting' | 'active' | 'reconnecting' | 'disconnected' | 'error';

interface SSEStateDetail {
  state: SSEState;
  reason: string;
  status?: number;
  /** Milliseconds until the next attempt. */
  retryIn?: number;
}

interface SSESettings {
  /** `false`: a connection that is lost stays lost. */
  reconnect?: boolean;
  /** Milliseconds before the first attempt to reconnect; the page's wish, it beats the `retry:` a stream opens with. */
  delay?: number;
  /** Milliseconds of silence, at most, on a stream that sends heartbeats. */
  heartbeatTimeout?: number;
}

/** Who is told what was parsed. */
interface StreamReader {
  /** A blank line ended a block; `data` is null where it had none, `own` says whether the id in force came with this block. */
  block(type: string, data: string | null, id: string, own: boolean): void;
  comment(text: string): void;
  retry(ms: number): void;
}

interface SharedMessage {
  type: string;
  data: string | null;
  /** In force. */
  id: string;
  /** The id came with this message. */
  own: boolean;
}

/**
 * What the sources of one URL tell each other.
 *
 * - A follower: `want`, to follow from an id; `ping`, is anybody there?; `again`, connect anew.
 * - The leader: `lead`, I lead now; `here` and `pong`, the answers; `message`, `beat` and `state` of a line; `move` to another line.
 */
interface Told {
  what: 'want' | 'ping' | 'again' | 'lead' | 'here' | 'pong' | 'message' | 'beat' | 'state' | 'move';
  /** The source that asks, or that is answered. */
  who?: number;
  /** When its page was loaded, if it is part of it. */
  fresh?: number;
  /** Somebody looks at the page. */
  eager?: boolean;
  id?: string;
  /** Without an id: where its page stands. */
  cursor?: string;
  line?: number;
  /** The line to move to. */
  to?: number;
  /** All lines that there are. */
  lines?: number[];
  /** Messages that the line has told, this one too. */
  count?: number;
  messages?: SharedMessage[];
  detail?: SSEStateDetail;
}

interface SSEEntry { url: string; element: Element | null; source: SSESource }

type SSEChange = SSEStateDetail & SSEEntry;

type MonitorState = 'active' | 'reconnecting' | 'disconnected' | 'error';

interface MonitorSettings {
  sse_element_id: string;
  status_element_id: string;
  auto_reconnect: boolean;
  /** Milliseconds. */
  reconnect_delay: number | null;
  /** Milliseconds. */
  heartbeat_timeout: number;
  debug: boolean;
  /** HTML. */
  status_indicators: Record<MonitorState, string>;
}

/** Our own source, or the browser's. */
type MonitoredSource = EventTarget & { state?: string; reason?: string; configure?: (settings: SSESettings) => void; own?: unknown; readyState: number; close(): void };

interface Window { htmx?: any; cjmSSE?: SSEClient; Idiomorph?: any }

/** A stream on a carrier. */
interface MuxChannel {
  number: number;
  tab: number;
  key: string;
  path: string;
  /** The last event id, and without it where the page stands. */
  ids: string[];
  /** Where it is open. */
  carrier: MuxCarrier | null;
}

interface MuxCarrier { id: string; identity: string; abort: AbortController; watchdog: Watchdog }

/** A channel that a tab wants, or has. */
interface MuxWish { key: string; path: string; ids: string[] }

interface MuxOpen extends MuxWish {
  resolve(response: Response): void;
  reject(error: unknown): void;
  /** Where what comes goes, once there was an answer. */
  controller: ReadableStreamDefaultController<Uint8Array> | null;
}

/**
 * What becomes of a channel: `bytes` that came, the `status` of the answer, its `end`; `direct`, ask without a channel, and `away`, say when that is over; `moved`, ask again; `lost`, with the status of what refused it.
 */
interface MuxWord {
  bytes?: Uint8Array;
  status?: number;
  type?: string;
  retry?: string | null;
  end?: boolean;
  direct?: boolean;
  away?: boolean;
  moved?: boolean;
  lost?: number;
}

type MuxNews = [key: string, word: MuxWord];

/**
 * What the tabs tell each other.
 *
 * - A tab: `fresh`, a page that begins; `hello`, I follow; `open` and `close` channels; `ping`, is anybody there?; `check`, somebody looks; `bye`.
 * - The leader: `lead`, I lead. Anybody: `broken`, this can't work here.
 */
interface MuxTold {
  what: 'fresh' | 'hello' | 'open' | 'close' | 'ping' | 'check' | 'bye' | 'lead' | 'broken';
  tag?: string;
  who?: number;
  key?: string;
  wishes?: MuxWish[];
  reason?: string;
}

/** Who an election is for, see election.js. */
interface ElectionOwner {
  /** This tab leads. */
  lead(): void;
  /** Another tab leads, or leads anew. */
  follow(leader: string): void;
  /** This tab leads no more. */
  lost(): void;
  /** A tab asked this leader; the id may be its own. */
  asked(tab: string, message: any): void;
  /** The leader told this tab. */
  told(message: any): void;
  /** Not all that the leader told came here. */
  missed(): void;
  /** A tab that asked is gone. */
  left(tab: string): void;
  /** A tab does not take what it is told. */
  overflowed(tab: string): void;
  /** There can be no election. */
  broken(reason: string): void;
}

type ElectionChannel = Pick<BroadcastChannel, 'postMessage' | 'close' | 'onmessage'>;

/** What a leader knows of a tab: what it has told it, what of that was taken, and how often it was asked; a negative count: it is told nothing any more. */
interface ElectionTab {
  out: ElectionChannel;
  count: number;
  bytes: number;
  acknowledged: number;
  asks: number;
  /** It has not taken any for a while. */
  late: boolean;
  /** Who waits for it to take some waits for this. */
  room?: Promise<void> | null;
  resume?: () => void;
}

/**
 * What tabs tell each other.
 *
 * - A follower: `ping`, who leads?; `ask`; `acknowledge`, bytes that it took.
 * - The leader: `lead`, I lead now; `here`, the answer to `ping` and `ask`; `beat`, I am well; `tell`.
 */
interface ElectionMessage {
  what: 'ping' | 'ask' | 'acknowledge' | 'lead' | 'here' | 'beat' | 'tell';
  who: string;
  /** Who is answered. */
  to?: string;
  /** It has asked before. */
  known?: boolean;
  /** Of an `ask` or a `tell`. */
  number?: number;
  /** Messages to this tab. */
  count?: number;
  /** Of this tab, that were taken. */
  asks?: number;
  /** Send those that were not. */
  again?: boolean;
  bytes?: number;
  /** Messages to each tab. */
  counts?: Record<string, number>;
  message?: unknown;
}
