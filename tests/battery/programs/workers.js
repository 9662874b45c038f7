// Worker threads that receive, build and return buffers and objects.
const { Worker, isMainThread, parentPort, workerData } =
    require('worker_threads');
const crypto = require('crypto');
const zlib = require('zlib');

if (isMainThread) {
  const run = (seed) => new Promise((resolve, reject) => {
    const worker = new Worker(__filename, { workerData: { seed } });
    worker.on('message', resolve);
    worker.on('error', reject);
  });
  (async () => {
    for (let round = 0; round < 3; round++) {
      const seeds = [0, 1, 2, 3].map((i) => round * 4 + i);
      const results = await Promise.all(seeds.map(run));
      for (const { seed, digest, size } of results) {
        console.log(seed, digest, size);
      }
    }
    const buffers = [];
    for (let i = 0; i < 3000; i++) buffers.push(Buffer.alloc(i * 7, i & 255));
    console.log(crypto.createHash('sha256')
        .update(Buffer.concat(buffers)).digest('hex'));
  })();
} else {
  const { seed } = workerData;
  const rows = [];
  for (let i = 0; i < 60000; i++) {
    rows.push({ id: i, name: 'n' + (i * seed) % 977, list: [i, seed] });
  }
  const packed = zlib.gzipSync(JSON.stringify(rows), { level: 5 });
  const back = JSON.parse(zlib.gunzipSync(packed));
  parentPort.postMessage({
    seed,
    digest: crypto.createHash('sha256').update(JSON.stringify(back))
        .digest('hex'),
    size: packed.length,
  });
}
