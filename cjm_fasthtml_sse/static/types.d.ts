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

/** Takes what was parsed. */
interface StreamReader {
  /** A blank line ended a block; `data` is null where it had none, `own` says whether `id` came with this block. */
  block(type: string, data: string | null, id: string, own: boolean): void;
  comment(text: string): void;
  retry(ms: number): void;
}

/** Brings the response to a source, as `fetch` does. */
type SSETransport = (source: SSESource, headers: Record<string, string>, signal: AbortSignal) => Promise<Response>;

/** `roots` are the live elements that a stream is for. */
interface SSEEntry { url: string; element: Element | null; source: SSESource; roots: () => Element[] }

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
type MonitoredSource = EventTarget & {
  state?: string;
  reason?: string;
  configure?: (settings: SSESettings) => void;
  readyState: number;
  close(): void;
};

/** A node of the copy that a live element keeps of its last drawing. `shown` is what shows it in the page. */
type Drawn = Element & CharacterData & { shown: any; parentNode: any; previousSibling: any; nextSibling: any;
  firstChild: any; childNodes: any };

interface Window { htmx?: any; cjmSSE?: SSEClient; Idiomorph?: any }

/** A channel that a tab wants: `ids` are the last event id, and without it where the page stands; `body` may be ''. */
interface ChannelWish {
  key: number;
  path: string;
  ticket: string;
  ids: string[];
  body: string;
  /** Its carrier was lost: it waits with all others for the next one. */
  back: boolean;
  /** Milliseconds that it would wait alone. */
  delay: number;
}

/** What a tab requests of the one that leads: its channels, all of them, and perhaps a check of the carriers. */
interface TabRequest { open: ChannelWish[]; check: boolean }

/** A channel in the tab whose it is. */
interface OpenChannel extends ChannelWish {
  source: SSESource;
  resolve(answer: Response | LeaderMessage): void;
  reject(error: unknown): void;
  /** Where what comes goes, once there was an answer. */
  controller: ReadableStreamDefaultController<Uint8Array> | null;
}

/** A channel in the tab that leads; `carrier` is there once it is open. */
interface MuxChannel extends ChannelWish { number: number; tab: string; carrier: MuxCarrier | null }

/** `stops`: the server does, and opens nothing more on it. */
interface MuxCarrier {
  id: string;
  visitor: string;
  abort: AbortController;
  watchdog: Watchdog;
  activeAt: number;
  stops: boolean;
}

/** What was asked of the server: channels to be opened and closed; may the answer `become` a carrier? */
interface ChannelRequest { open: MuxChannel[]; close: number[]; become: boolean; sent: number; abort: AbortController }

/**
 * What becomes of a channel: `bytes` that came, the `status` of the answer, its `end`; `direct`, open it without a
 * channel because of this, and `away`, say when that is over; `ticket`, it was refused; `cookie`, fetch one; `moved`,
 * open it anew; `lost`, its carrier is, or ends with the server; `retryIn`, a request for it was in vain (`failed`, the status), and is sent
 * again in so many milliseconds. `down` is about all: no carrier works, because of this.
 */
interface LeaderMessage {
  bytes?: Uint8Array;
  status?: number;
  type?: string;
  stream?: string;
  retry?: string | null;
  end?: boolean;
  direct?: string;
  away?: boolean;
  ticket?: boolean;
  cookie?: boolean;
  moved?: boolean;
  lost?: boolean;
  failed?: number;
  retryIn?: number;
  down?: string;
}

/** Who an election is for, see election.js. */
interface ElectionOwner {
  /** This tab leads. It has no requests so far. */
  lead(): void;
  /** Another tab leads, or leads anew: send it a request. */
  follow(leader: string): void;
  /** This tab leads no more. Neither `join` nor `leave` may be called in here. */
  lost(): void;
  /** A tab, perhaps this one, sent this leader what it wants now. */
  requested(tab: string, message: any): void;
  /** The leader sent this to this tab. */
  received(message: any): void;
  /** A tab is gone, or does not take what it is sent. */
  left(tab: string): void;
  /** A tab waits for a sign of life of this leader. */
  pinged(): void;
  /** There can be no election. */
  alone(reason: unknown): void;
}

/** What a follower knows of its leader. */
interface ElectionLeader {
  id: string;
  out: BroadcastChannel;
  /** The newest request, its number, and the number of the newest one that the leader has. */
  request: unknown;
  number: number;
  confirmed: number;
  /** Messages that came, their bytes, and how many of these were acknowledged. */
  count: number;
  bytes: number;
  acknowledged: number;
}

/** What a leader knows of a tab. */
interface ElectionTab {
  out: BroadcastChannel;
  /** Messages to it; below 0: it did not take them and is sent none any more. */
  count: number;
  bytes: number;
  acknowledged: number;
  /** The number of its newest request. */
  requests: number;
  /** It has not acknowledged anything for a while. */
  lagging: boolean;
  /** Until it has acknowledged more, and what ends that. */
  room?: Promise<void> | null;
  resume?: () => void;
}

/**
 * What tabs send each other.
 *
 * - A follower: `ping`, who leads?; `request`; `ack`, so many bytes came.
 * - The leader to all: `lead`, its sign of life, with the number of messages to each tab.
 * - The leader to one tab: `state`, the number of messages, and of the newest request, from it; `data`.
 */
interface ElectionMessage {
  what: 'ping' | 'request' | 'ack' | 'lead' | 'state' | 'data';
  who: string;
  number?: number;
  requests?: number;
  bytes?: number;
  counts?: Record<string, number>;
  message?: unknown;
}
