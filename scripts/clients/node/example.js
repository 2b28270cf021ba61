// Trains a few rows of a matrix from Node.js: each step pulls rows and pushes half of their values as gradients.
//
//   npm install                                                      # once, in this folder
//   python -m towers.classcenters.server --shards 2                  # in another terminal
//   node example.js 127.0.0.1:5570,127.0.0.1:5571 [steps]
//
// Prints the rows after the last step as one line of JSON.
'use strict';

const { ClassCenters } = require('./class_centers.js');

const COLUMNS = 4;
const ROWS = [0, 3, 4, 9];

async function main() {
  const addresses = (process.argv[2] || '127.0.0.1:5570').split(',');
  const steps = Number(process.argv[3] || 3);
  const store = new ClassCenters(addresses, { token: process.env.TOWERS_TOKEN || null });
  await store.describe();
  let version = await store.create('node', { rows: 10, columns: COLUMNS, seed: 1, scale: 0.5, rule: 'sgd' });
  for (let step = 0; step < steps; step++) {
    const values = await store.pull('node', ROWS, COLUMNS, version);
    version = await store.push('node', ROWS, COLUMNS, values.map((value) => value / 2), { version, learningRate: 1 });
  }
  const values = await store.pull('node', ROWS, COLUMNS, version);
  console.log(JSON.stringify({ version, rows: ROWS, values: Array.from(values) }));
  store.close();
}

main().catch((error) => {
  console.error(error.details || error.message);
  process.exit(1);
});
