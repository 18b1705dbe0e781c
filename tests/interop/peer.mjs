// Drives one real agentic-flow transport by JSON lines: commands in, answers and events out.
//   node peer.mjs LOADER [CONFIG]        LOADER: the package's dist/transport/quic-loader.js
//   {"id": 1, "op": "send", ...}    →    {"id": 1, "result": ...} or {"id": 1, "error": "..."}
//   events: {"event": "message" | "probe" | "ping" | "pong" | "close" | "echo-error", ...}
//           "probe": agentic-flow has pinged; "ping": it was pinged; "pong": its ping was answered
import { createRequire } from 'node:module';
import { createInterface } from 'node:readline';
import { pathToFileURL } from 'node:url';

// agentic-flow logs to standard output, which belongs to the protocol here.
console.log = console.error;

const [loader, config] = [process.argv[2], JSON.parse(process.argv[3] ?? '{}')];
const { loadQuicTransport } = await import(pathToFileURL(loader).href);
const WebSocket = createRequire(loader)('ws');
const transport = await loadQuicTransport(config);

const say = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);
const report = (handler) => (address, message) => say({ event: 'message', handler, address, message });

// Control frames and closings are invisible through the transport, so the sockets themselves are watched.
const sockets = new Set();
function watch(ws) {
  if (sockets.has(ws)) return;
  sockets.add(ws);
  const remote = `${ws._socket.remoteAddress}:${ws._socket.remotePort}`;
  const ping = ws.ping;
  ws.ping = (...details) => {
    say({ event: 'probe', remote });
    return ping.apply(ws, details);
  };
  ws.on('ping', () => say({ event: 'ping', remote }));
  ws.on('pong', () => say({ event: 'pong', remote }));
  ws.on('close', (code, reason) => {
    sockets.delete(ws);
    say({ event: 'close', remote, code, reason: reason.toString() });
  });
}

function describe(ws) {
  const { localPort, remotePort, bytesRead, bytesWritten } = ws._socket;
  return { localPort, remotePort, bytesRead, bytesWritten, extensions: ws.extensions };
}

// Every socket, dialed or accepted, announces itself through this one method.
const emit = WebSocket.prototype.emit;
WebSocket.prototype.emit = function (event, ...rest) {
  if (event === 'open') watch(this);
  return emit.call(this, event, ...rest);
};

function echo({ to, mode = 'same-id', stream }) {
  const answer = (message) => {
    if (mode === 'same-id') return { ...message, type: 'result' };
    const { streamId, payload } = message;
    const metadata = mode === 'reply-to' ? { replyTo: message.id } : undefined;
    return { id: `answer-${message.id}`, type: 'result', streamId, payload, metadata };
  };
  const handler = async (address, message) => {
    if (message.type === 'result') return;
    try {
      await transport.send(to ?? address, answer(message));
    } catch (error) {
      say({ event: 'echo-error', address, error: error.message });
    }
  };
  transport.onMessage(handler, stream === undefined ? {} : { streamId: stream });
}

async function burst({ address, count, payload }) {
  for (let n = 0; n < count; n++) {
    await transport.send(address, { id: `burst-${n}`, type: 'task', payload: { n, payload } });
  }
}

const operations = {
  listen: ({ port, host }) => transport.listen(port, host),
  send: ({ address, message }) => transport.send(address, message),
  sendBatch: ({ address, messages }) => transport.sendBatch(address, messages),
  burst,
  onMessage: ({ handler, stream }) => transport.onMessage(report(handler), { streamId: stream }),
  echo,
  receive: ({ address, stream }) => transport.receive(address, stream),
  request: ({ address, message }) => transport.request(address, message),
  getStats: () => transport.getStats(),
  sockets: () => [...sockets].map(describe),
  close: () => transport.close(),
};

async function perform({ id, op, ...details }) {
  try {
    say({ id, result: (await operations[op](details)) ?? null });
  } catch (error) {
    say({ id, error: error.message });
  }
}

transport.onMessage(report('all'));
createInterface({ input: process.stdin, crlfDelay: Infinity })
  .on('line', (line) => perform(JSON.parse(line)))
  // Sockets that agentic-flow has lost track of would keep the process alive.
  .on('close', () => process.exit(0));
say({ event: 'ready' });
