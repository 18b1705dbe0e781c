// agentic-flow plays the same works as benchmarks/worker.py, on its own public API.
//   node agentic_flow.mjs LOADER run PLAN            one JSON line on stdout
//   node agentic_flow.mjs LOADER send PLAN PORT      the sending end of two processes
//   node agentic_flow.mjs LOADER ask PLAN PORT       the asking end of two processes
import { spawn } from 'node:child_process';
import { createServer } from 'node:net';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { pathToFileURL } from 'node:url';

const [loader, role, planJson, portText] = process.argv.slice(2);
const plan = JSON.parse(planJson);
const { loadQuicTransport } = await import(pathToFileURL(loader).href);

const HOST = '127.0.0.1';
const PAUSE = 300;
const SILENCE = 5000;
// The monotonic clock that Python's perf_counter reads too, in seconds.
const now = () => Number(process.hrtime.bigint()) / 1e9;
// Done when the line has left: exit() would cut what the pipe has not taken.
const say = (line) => new Promise((done) => process.stdout.write(JSON.stringify(line) + '\n', done));

const message = (n) => ({ id: `m${String(n).padStart(11, '0')}`, type: 'task', payload: plan.payload });
const messages = (first, count) => Array.from({ length: count }, (_, n) => message(first + n));

async function freePort() {
  const probe = createServer().listen(0, HOST);
  await once(probe, 'listening');
  const { port } = probe.address();
  await new Promise((resolve) => probe.close(resolve));
  return port;
}

async function listen(handler) {
  const server = await loadQuicTransport();
  const port = await freePort();
  server.onMessage((address, received) => handler(server, address, received));
  await server.listen(port, HOST);
  return port;
}

const echo = () => listen((server, address, received) => server.send(address, received));

const rtt = async () => ask(await echo());

async function ask(port) {
  const address = `${HOST}:${port}`;
  const client = await loadQuicTransport();
  const ready = messages(0, plan.warmup + plan.count);
  const times = [];
  await new Promise((resolve) => {
    let start = 0;
    const serve = (n) => {
      start = now();
      client.send(address, ready[n]);
    };
    client.onMessage(() => {
      times.push(now() - start);
      if (times.length < ready.length) serve(times.length);
      else resolve();
    });
    serve(0);
  });
  return inMicroseconds(times);
}

async function polled() {
  const address = `${HOST}:${await echo()}`;
  const client = await loadQuicTransport();
  const times = [];
  for (const question of messages(0, plan.warmup + plan.count)) {
    const start = now();
    await client.request(address, question);
    times.push(now() - start);
  }
  return inMicroseconds(times);
}

const inMicroseconds = (times) => ({
  times_us: times.slice(plan.warmup).map((seconds) => Math.round(seconds * 1e8) / 100),
});

function tally(expected) {
  const counted = { count: 0, last: 0 };
  let complete;
  const whole = new Promise((resolve) => { complete = resolve; });
  counted.seen = () => {
    counted.count += 1;
    counted.last = now();
    if (counted.count >= expected) complete();
  };
  counted.settled = async () => {
    let before = -1;
    while (counted.count < expected && counted.count !== before) {
      before = counted.count;
      await Promise.race([whole, sleep(SILENCE)]);
    }
  };
  return counted;
}

async function sendAll(client, address, ready) {
  for (let at = 0; at < ready.length; at += plan.chunk) {
    await client.sendBatch(address, ready.slice(at, at + plan.chunk));
  }
}

async function send(port) {
  const client = await loadQuicTransport();
  const address = `${HOST}:${port}`;
  const ready = messages(plan.warmup, plan.count);
  // The first send opens the connection; without it every message of the first chunk would dial its own.
  await client.send(address, message(0));
  await sendAll(client, address, messages(1, Math.max(plan.warmup - 1, 0)));
  await sleep(PAUSE);
  const started = now();
  await sendAll(client, address, ready);
  return { started, closed: async () => (await client.getStats()).closed };
}

async function oneWay() {
  const counted = tally(warmup() + plan.count);
  const sent = await send(await listen(counted.seen));
  await counted.settled();
  return received(counted, sent.started, await sent.closed());
}

// Another process, and the lines that it prints.
function otherEnd(itsRole, port) {
  const child = spawn(process.execPath, [process.argv[1], loader, itsRole, planJson, String(port)], {
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  return { child, lines: createInterface({ input: child.stdout })[Symbol.asyncIterator]() };
}

async function rttTwo() {
  const { lines } = otherEnd('ask', await echo());
  return JSON.parse((await lines.next()).value);
}

async function oneWayTwo() {
  const counted = tally(warmup() + plan.count);
  const port = await listen(counted.seen);
  const { child, lines } = otherEnd('send', port);
  const { started } = JSON.parse((await lines.next()).value);
  await counted.settled();
  child.stdin.end();
  const { closed } = JSON.parse((await lines.next()).value);
  return received(counted, started, closed);
}

// At least the message that opened the connection.
const warmup = () => Math.max(plan.warmup, 1);

const received = (counted, started, closed) => ({
  sent: plan.count,
  received: counted.count - warmup(),
  seconds: counted.last - started,
  acked: false,
  closed,
});

async function sendAndStay(port) {
  const sent = await send(port);
  await say({ started: sent.started });
  process.stdin.resume();
  await once(process.stdin, 'end');
  await say({ closed: await sent.closed() });
}

const WORKS = {
  rtt,
  'rtt-two': rttTwo,
  'rtt-polled': polled,
  'one-way': oneWay,
  'one-way-1k': oneWay,
  'one-way-two': oneWayTwo,
};

if (role === 'send') await sendAndStay(Number(portText));
else if (role === 'ask') await say(await ask(Number(portText)));
else await say(await WORKS[plan.work]());
process.exit(0);
