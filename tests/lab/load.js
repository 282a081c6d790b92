// Holds a heap it can check, and makes garbage of it under load.
//
// Port 7000 takes 8 bytes, a number one higher than the connection's last, and gives them back; it
// hangs up at any other. Port 7001 answers a line with what is there, as a line of JSON. The argument
// is the milliseconds between two changes that it makes by itself.
'use strict';
const crypto = require('crypto');
const net = require('net');

const ENTRIES = 8192;
const PAUSE = Number(process.argv[1]);
const heap = new Map();
let served = 0;

function value(key) {
  const digest = crypto.createHash('sha256').update(String(key)).digest('hex');
  return { key, text: Array(64).fill(digest).join('') };
}

function same(entry) {
  return entry.text === value(entry.key).text;
}

// Replace an entry by an equal one; a damaged one ends the program.
function turnOver() {
  const key = Math.floor(Math.random() * ENTRIES);
  if (!same(heap.get(key))) process.exit(1);
  heap.set(key, value(key));
}

// Keep libuv's own threads at work.
function work() {
  crypto.pbkdf2('password', 'salt', 2000, 64, 'sha512', (error, key) => {
    if (error) throw error;
    setTimeout(work, PAUSE - (key[0] & 1));
  });
}

function echo(socket) {
  let expected = 0n;
  let received = Buffer.alloc(0);
  socket.setNoDelay(true);
  socket.on('error', () => {});
  socket.on('data', (data) => {
    received = Buffer.concat([received, data]);
    for (; received.length >= 8; received = received.subarray(8)) {
      if (received.readBigUInt64BE() !== expected) return socket.destroy();
      turnOver();
      served += 1;
      expected += 1n;
      socket.write(received.subarray(0, 8));
    }
  });
}

function tell(socket) {
  socket.on('error', () => {});
  socket.on('data', () => {
    const damaged = [...heap.values()].filter((entry) => !same(entry)).length;
    const state = { pid: process.pid, entries: heap.size, damaged, served };
    socket.write(JSON.stringify(state) + '\n');
  });
}

for (let key = 0; key < ENTRIES; key++) heap.set(key, value(key));
work();
setInterval(turnOver, PAUSE);
net.createServer(tell).listen(7001);
net.createServer(echo).listen(7000, () => console.log('ready'));
