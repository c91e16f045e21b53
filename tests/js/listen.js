// Socket.IO clients that connect again by themselves, until all have had two sessions; prints the
// numbers that each has heard, by session.
//
//   node listen.js URL '{"clients": 4, "transport": "polling", "enough": 10}'
"use strict";

const { io } = require("socket.io-client");

const [url, text] = process.argv.slice(2);
const { clients, transport, enough } = JSON.parse(text);

function listen() {
  // The delays are shorter than usual, nothing else.
  const options = { reconnectionDelay: 100, reconnectionDelayMax: 300 };
  const socket = io(url, { transports: [transport], forceNew: true, ...options });
  const sessions = [];
  return new Promise((resolve) => {
    socket.on("connect", () => sessions.push([]));
    socket.on("number", (number) => {
      const heard = sessions.at(-1);
      heard.push(number);
      if (sessions.length > 1 && heard.length >= enough) {
        socket.disconnect();
        resolve(sessions);
      }
    });
  });
}

Promise.all(Array.from({ length: clients }, listen)).then((all) => {
  process.stdout.write(JSON.stringify(all));
});
