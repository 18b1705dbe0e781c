// Drives one node of a federation, the real plugin over the real agentic-flow, by JSON lines as peer.mjs does.
//   node federation.mjs FOLDER CONFIG     FOLDER: where node_modules has the plugin; CONFIG: the plugin's own
//   events: {"event": "inbound" | "audit", ...}: what passed its checks, and what it says of everything
//
// The plugin hands over what passed, and "does not execute inbound tasks": that is the integrator's part, here
// the three lines under `serve`. It calls its handshake service with itself only (joinPeer challenges this node,
// not the other), so the exchange of challenges over the wire is made of its own pieces here, too.
import { readFileSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';

console.log = console.info = console.warn = console.error;

const [folder, config] = [process.argv[2], JSON.parse(process.argv[3])];
const home = join(folder, 'node_modules', '@claude-flow', 'plugin-agent-federation', 'dist');
const { AgentFederationPlugin } = await import(pathToFileURL(join(home, 'index.js')).href);

const say = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);
const services = new Map();
const plugin = new AgentFederationPlugin();

const serve = {
  'challenge': async (source, payload) => {
    await route(source, 'challenge-response', await handshake.respondToHandshake(payload));
  },
  'challenge-response': async (source, payload) => {
    const node = discovery.getPeer(source);
    const { success, session, error } = await handshake.verifyChallenge(payload, node);
    say({ event: 'verified', success: success && payload.publicKey === node.publicKey, error,
          capabilities: session?.negotiatedCapabilities, trustLevel: node.trustLevel });
  },
  'task-assignment': async (source, { taskId, n }) => {
    const report = n === undefined ? { status: 'failed', error: 'no n' } : { status: 'completed', result: { tripled: 3 * n } };
    await coordinator.sendMessage(source, 'status-broadcast', { taskId, ...report });
  },
};

function emit(name, event) {
  if (name === 'federation:audit') return say({ event: 'audit', kind: event.eventType, metadata: event.metadata });
  if (!name.startsWith('federation:inbound:')) return;
  const { sourceNodeId, address, message } = event;
  say({ event: 'inbound', kind: message.type, sourceNodeId, address, envelope: message.payload });
  serve[message.type]?.(sourceNodeId, message.payload.payload).catch((error) => say({ event: 'error', error: error.message }));
}

await plugin.initialize({
  config,
  eventBus: { emit, on() {}, off() {}, once() {} },
  logger: { info: console.error, warn: console.error, error: console.error, debug() {} },
  services: { register: (name, service) => services.set(name, service), get: (name) => services.get(name) },
});
const { coordinator } = plugin;
const { discovery, handshake } = coordinator;
const { publicKey } = JSON.parse(readFileSync(join('.claude-flow', 'federation', `key-${config.nodeId}.json`)));
await coordinator.initialize({
  nodeId: config.nodeId,
  publicKey,
  endpoint: config.endpoint,
  capabilities: { agentTypes: ['coder', 'tester'], maxConcurrentSessions: 10, supportedProtocols: ['websocket'], complianceModes: [] },
  version: plugin.version,
  timestamp: new Date().toISOString(),
});

const sessionWith = (nodeId) => coordinator.getActiveSessions().find((s) => s.remoteNodeId === nodeId);
const route = (nodeId, type, payload) => services.get('federation:routing').send(sessionWith(nodeId), type, payload);

const operations = {
  manifest: () => discovery.getLocalManifest(),
  card: () => plugin.agentCardServer.url,
  addPeer: async ({ endpoint, manifest }) => {
    const { nodeId, trustLevel } = await discovery.addStaticPeer(endpoint, manifest);
    return { nodeId, trustLevel };
  },
  join: async ({ endpoint }) => {
    const { remoteNodeId, trustLevel } = await coordinator.joinPeer(endpoint);
    return { nodeId: remoteNodeId, trustLevel };
  },
  challenge: async ({ to }) => route(to, 'challenge', await handshake.initiateHandshake(discovery.getPeer(to))),
  route: ({ to, type, payload }) => route(to, type, payload),
  send: ({ to, type, payload }) => coordinator.sendMessage(to, type, payload),
  evict: ({ nodeId }) => coordinator.evictPeer(nodeId),
  status: () => coordinator.getStatus(),
  stats: () => plugin.transport.getStats(),
};

async function perform({ id, op, ...details }) {
  try {
    say({ id, result: (await operations[op](details)) ?? null });
  } catch (error) {
    say({ id, error: error.message });
  }
}

createInterface({ input: process.stdin, crlfDelay: Infinity })
  .on('line', (line) => perform(JSON.parse(line)))
  .on('close', () => process.exit(0));
say({ event: 'ready' });
