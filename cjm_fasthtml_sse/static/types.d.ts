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

/** Brings the response to a source, as `fetch` does. */
type SSETransport = (source: SSESource, headers: Record<string, string>, signal: AbortSignal) => Promise<Response>;

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

/** A channel that a tab wants: `ids` are the last event id, and without it where the page stands. */
interface MuxWish { key: string; path: string; ticket: string; ids: string[] }

interface MuxOpen extends MuxWish {
  resolve(answer: Response | MuxWord): void;
  reject(error: unknown): void;
  /** Where what comes goes, once there was an answer. */
  controller: ReadableStreamDefaultController<Uint8Array> | null;
}

/** A stream on a carrier, in the tab that holds it; `carrier` is there once it is open. */
interface MuxChannel extends MuxWish { number: number; tab: string; carrier: MuxCarrier | null }

interface MuxCarrier { id: string; visitor: string; abort: AbortController; watchdog: Watchdog; chunks: number }

/**
 * What becomes of a channel: `bytes` that came, the `status` of the answer, its `end`; `direct`, open it without a channel because of this, and `away`, say when that is over;
 * `ticket`, it was refused; `cookie`, fetch one; `moved`, ask again; `lost`, with the status of what refused it. `down` is about all: no carrier works, because of this.
 */
interface MuxWord {
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
  lost?: number;
  down?: string;
}

type MuxNews = [key: string, word: MuxWord];

/** What a tab asks of the one that leads. */
interface MuxAsked { open?: MuxWish[]; close?: string; check?: boolean }

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
 * - A follower: `ping`, who leads?; `ask`; `took`, so many bytes.
 * - The leader: `lead`, I lead, the answer to `ping` of a tab that it does not know, too; `here`, the answer to one that it knows, and to `ask`; `beat`, I am well; `tell`.
 */
interface ElectionMessage {
  what: 'ping' | 'ask' | 'took' | 'lead' | 'here' | 'beat' | 'tell';
  who: string;
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
