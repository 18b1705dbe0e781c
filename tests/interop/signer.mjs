// Signs and verifies messages as the ruflo federation plugin does (signatureVersion jcs-v1), with
// node's own crypto and the npm package canonicalize.
//   node signer.mjs LIBRARY < TASKS    TASKS: a JSON list of {"op": ..., ...}; prints the list of results
import { createPrivateKey, createPublicKey, sign, verify } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';

const loaded = createRequire(process.argv[2])('canonicalize');
const canonicalize = loaded.default ?? loaded;

// The fixed DER around the 32 bytes of a key (RFC 8410).
const SECRET = '302e020100300506032b657004220420';
const PUBLIC = '302a300506032b6570032100';
const secretKey = (seed) =>
  createPrivateKey({ key: Buffer.from(SECRET + seed, 'hex'), format: 'der', type: 'pkcs8' });
const publicKey = (raw) =>
  createPublicKey({ key: Buffer.from(PUBLIC + raw, 'hex'), format: 'der', type: 'spki' });

function covered({ id, type, payload, metadata }) {
  const { signature, ...rest } = metadata ?? {};
  return Buffer.from(canonicalize({ id, type, payload, metadata: rest }));
}

function portable(value) {
  if (typeof value === 'number') {
    return !Object.is(value, -0) && !(Number.isInteger(value) && !Number.isSafeInteger(value));
  }
  return value === null || typeof value !== 'object' || Object.values(value).every(portable);
}

const operations = {
  canonical: ({ text }) => canonicalize(JSON.parse(text)),
  portable: ({ text }) => portable(JSON.parse(text)),
  sign({ seed, message }) {
    const unsigned = { ...message, metadata: { ...message.metadata, signatureVersion: 'jcs-v1' } };
    const signature = sign(null, covered(unsigned), secretKey(seed)).toString('hex');
    return JSON.stringify({ ...unsigned, metadata: { ...unsigned.metadata, signature } });
  },
  verify({ key, text }) {
    const message = JSON.parse(text);
    const { signature, signatureVersion } = message.metadata;
    const bytes = Buffer.from(signature, 'hex');
    return signatureVersion === 'jcs-v1' && verify(null, covered(message), publicKey(key), bytes);
  },
};

const tasks = JSON.parse(readFileSync(0, 'utf8'));
process.stdout.write(JSON.stringify(tasks.map(({ op, ...details }) => operations[op](details))));
