// Client of the class-centre server for Node.js: pulls rows and pushes their gradients, over any number of shards.
'use strict';

const crypto = require('crypto');
const path = require('path');
const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');

const PROTO =
  process.env.TOWERS_PROTO ||
  path.join(__dirname, '../../../src/towers/classcenters/protocol/class_centers.proto');
const BLOCK_BYTES = 1 << 20;

class ClassCenters {
  // addresses: host:port of the shards in their order. client: number of this process among those that push.
  constructor(addresses, { client = 0, token = null, credentials = grpc.credentials.createInsecure() } = {}) {
    // 64-bit numbers as strings: a generation does not fit a JavaScript number.
    const definition = loader.loadSync(PROTO, { longs: String, enums: String, defaults: true, keepCase: true });
    const Service = grpc.loadPackageDefinition(definition).towers.classcenters.v1.ClassCenters;
    this.shards = addresses.map((address) => new Service(address, credentials));
    this.client = client;
    this.metadata = new grpc.Metadata();
    if (token) this.metadata.set('authorization', `Bearer ${token}`);
  }

  close() {
    this.shards.forEach((shard) => shard.close());
  }

  // Descriptions of all shards; throws if the addresses are not in the shards' order.
  async describe() {
    const found = await Promise.all(this.shards.map((shard) => this._unary(shard, 'Describe', {})));
    found.forEach((one, number) => {
      if (one.shard !== number || one.shards !== this.shards.length) {
        throw new Error(`address ${number} is shard ${one.shard} of ${one.shards}`);
      }
    });
    this.generations = found.map((one) => one.generation);
    return found;
  }

  // Makes a matrix; specification as in the .proto: { rows, columns, seed, scale, rule, momentum, weight_decay }.
  async create(name, specification) {
    const made = await Promise.all(this.shards.map((shard) => this._unary(shard, 'Create', { name, specification })));
    return Number(made[0].version);
  }

  // Float32Array [rows.length * columns], in the order of rows. version: wait until that many steps have been made.
  async pull(matrix, rows, columns, version = null) {
    const values = new Float32Array(rows.length * columns);
    await Promise.all(
      this.shards.map(async (shard, number) => {
        const places = this._places(rows, number);
        const request = { matrix, rows: places.map((place) => this._local(rows[place])) };
        if (version !== null) request.version = version;
        let filled = 0;
        for await (const block of shard.Pull(request, this.metadata)) {
          if (block.columns !== columns) throw new Error(`${matrix} has ${block.columns} columns, not ${columns}`);
          for (let row = 0; row < block.rows.length; row++, filled++) {
            for (let column = 0; column < columns; column++) {
              const at = 4 * (row * columns + column);
              values[places[filled] * columns + column] = block.values.readFloatLE(at);
            }
          }
        }
        if (filled !== places.length) throw new Error(`shard ${number} sent ${filled} rows of ${places.length}`);
      })
    );
    return values;
  }

  // One step with gradients (Float32Array [rows.length * columns]) of strictly increasing rows; the next version.
  async push(matrix, rows, columns, gradients, { version, learningRate }) {
    if (rows.some((row, place) => place && row <= rows[place - 1])) throw new Error('rows are not strictly increasing');
    if (!this.generations) await this.describe();
    const request = crypto.randomBytes(6).readUIntBE(0, 6);
    await Promise.all(
      this.shards.map((shard, number) => {
        const places = this._places(rows, number);
        return new Promise((resolve, reject) => {
          const call = shard.Push(this.metadata, (error, reply) => (error ? reject(error) : resolve(reply)));
          call.write({
            header: {
              matrix,
              generation: this.generations[number],
              client: this.client,
              request,
              version,
              learning_rate: learningRate,
              rows: places.length,
            },
          });
          const step = Math.max(1, Math.floor(BLOCK_BYTES / (4 * columns)));
          for (let start = 0; start < places.length; start += step) {
            const part = places.slice(start, start + step);
            const values = Buffer.alloc(4 * part.length * columns);
            part.forEach((place, row) => {
              for (let column = 0; column < columns; column++) {
                values.writeFloatLE(gradients[place * columns + column], 4 * (row * columns + column));
              }
            });
            call.write({
              block: { rows: part.map((place) => this._local(rows[place])), columns, dtype: 'FLOAT32', values },
            });
          }
          call.end();
        });
      })
    );
    return version + 1;
  }

  _unary(shard, name, request) {
    return new Promise((resolve, reject) => {
      shard[name](request, this.metadata, (error, reply) => (error ? reject(error) : resolve(reply)));
    });
  }

  _places(rows, shard) {
    return [...rows.keys()].filter((place) => rows[place] % this.shards.length === shard);
  }

  _local(row) {
    return Math.floor(row / this.shards.length);
  }
}

module.exports = { ClassCenters };
