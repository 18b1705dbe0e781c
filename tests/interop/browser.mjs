// What the page in examples/browser.html does, in node: its class Line, over the WebSocket of `ws`.
//   node browser.mjs FOLDER PAGE URL TOKEN       prints one JSON object
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { runInThisContext } from 'node:vm';

const [folder, page, url, token] = process.argv.slice(2);
globalThis.WebSocket = createRequire(join(folder, 'package.json'))('ws');
const [, script] = readFileSync(page, 'utf8').match(/<script id="line">(.*?)<\/script>/s);
const Line = runInThisContext(`${script}; Line`);

const told = [];
const states = [];
const line = new Line(url, { hello: { token }, onState: (state) => states.push(state), onMessage: ({ payload }) => told.push(payload) });
const until = async (condition) => { while (!condition()) await new Promise((done) => setTimeout(done, 10)); };

await until(() => states.includes('connected'));
const answers = await Promise.all(['a', 'ä😀', ''].map((text) => line.request('task', { text })));
await until(() => told.length > 0);
// The line is cut, and comes back by itself.
line.socket.close();
await until(() => states.length === 3);
answers.push(await line.request('task', { text: 'again' }));
const stranger = new Line(url, { hello: { token: 'wrong' } });
await until(() => stranger.socket.readyState === 1);
const refused = await stranger.request('task', { text: 'x' }, 0.5).catch((error) => error.message);
stranger.close();
line.close();
process.stdout.write(JSON.stringify({ states, answers: answers.map(({ text }) => text), told: told[0], refused }));
