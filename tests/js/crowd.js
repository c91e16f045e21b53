// Socket.IO clients that enter rooms and send each other messages through an obedient server
// (tests/apps); prints what each of them heard. The plan is that of tests/harness/clients/crowd.py.
//
//   node crowd.js '{"clients": [{url, transport, room}], "messages": [{sender, number, room, length}]}'
"use strict";

const { io } = require("socket.io-client");

const { clients, messages } = JSON.parse(process.argv[2]);
const PATIENCE_MS = 20000;

function ask(socket, ...event) {
  return socket.timeout(PATIENCE_MS).emitWithAck(...event);
}

function order(socket, method, args, options) {
  return ask(socket, "do", method, args, options);
}

async function enter({ url, transport, room }) {
  // A client that may reconnect would hide a request that went astray.
  const socket = io(url, { transports: [transport], reconnection: false, forceNew: true });
  const heard = [];
  const ended = new Promise((resolve, reject) => {
    let ends = 0;
    socket.on("the end", () => ++ends === clients.length && resolve());
    socket.on("disconnect", (reason) => reject(new Error(reason)));
  });
  socket.on("said", ([sender, number, text]) => heard.push([sender, number, text.length]));
  await new Promise((resolve, reject) => {
    socket.once("connect", resolve);
    socket.once("connect_error", reject);
  });
  await order(socket, "enter_room", [socket.id, room], {});
  return { socket, heard, ended, worker: await ask(socket, "where") };
}

async function talk({ socket }, sender) {
  for (const { number, room, length } of messages.filter((each) => each.sender === sender)) {
    await order(socket, "emit", ["said", [sender, number, "x".repeat(length)]], { room });
  }
  await order(socket, "emit", ["the end"], {});
}

async function main() {
  const all = await Promise.all(clients.map(enter));
  await Promise.all(all.map(talk));
  await Promise.all(all.map(({ ended }) => ended));
  process.stdout.write(JSON.stringify(all.map(({ heard, worker }) => ({ heard, worker }))));
  all.forEach(({ socket }) => socket.off("disconnect").disconnect());
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
