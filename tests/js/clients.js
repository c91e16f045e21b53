// Runs many Socket.IO clients at once, and prints what each of them saw.
//
//   node clients.js URL '{"clients": 24, "calls": 10, "transports": ["polling", "websocket"]}'
"use strict";

const { io } = require("socket.io-client");

const [url, text] = process.argv.slice(2);
const { clients, calls, transports } = JSON.parse(text);
const PATIENCE_MS = 20000;

function once(emitter, event) {
  return new Promise((resolve) => emitter.once(event, resolve));
}

function connected(socket) {
  return new Promise((resolve, reject) => {
    socket.once("connect", resolve);
    socket.once("connect_error", reject);
  });
}

async function client() {
  // A client that may reconnect would hide a request that went astray.
  const socket = io(url, { transports, reconnection: false, forceNew: true });
  const engine = socket.io.engine;
  const upgraded = transports.length > 1 ? once(engine, "upgrade") : null;
  const seen = { transports: [engine.transport.name], workers: [], answers: 0, error: null };

  async function call(count) {
    for (let i = 0; i < count; i++) {
      const number = seen.answers;
      const answer = await socket.timeout(PATIENCE_MS).emitWithAck("call", number);
      if (answer.number !== number) throw new Error(`asked ${number}, got ${answer.number}`);
      seen.workers.push(answer.worker);
      seen.answers += 1;
    }
  }

  try {
    await connected(socket);
    await call(Math.floor(calls / 2));
    if (upgraded) {
      await upgraded;
      seen.transports.push(engine.transport.name);
    }
    await call(Math.ceil(calls / 2));
  } catch (error) {
    seen.error = String(error.description?.message ?? error.message ?? error);
  }
  socket.disconnect();
  return seen;
}

Promise.all(Array.from({ length: clients }, client)).then((all) => {
  const failed = all.some((seen) => seen.error);
  // Node ends by itself when all have said goodbye; one that failed may never do so.
  process.stdout.write(JSON.stringify(all), () => failed && process.exit(0));
});
