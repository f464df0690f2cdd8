// Builds the tables of a sync engine, or delivers signed events to it one by one:
//
//     node deliver.mjs ENGINE migrate
//     node deliver.mjs ENGINE deliver FILE WARM_UP
//
// FILE is a JSON array of [body, signature]. After the first WARM_UP of them the program
// prints "ready" and waits for a line; after the last it prints "done". The database is
// that of PGHOST, PGDATABASE and so on. OPENAPI_FILE is Stripe's OpenAPI schema.

import { readFile } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { createInterface } from 'node:readline'

const [engine, command, file, warmUp] = process.argv.slice(2)
// The CommonJS builds, because not all of the others find their migrations.
const { StripeSync, runMigrations } = createRequire(import.meta.url)(engine)

const nothing = () => {}
const logger = {
  debug: nothing,
  info: nothing,
  warn: nothing,
  // An engine may log a failed migration and go on.
  error(...reasons) {
    console.error(...reasons)
    process.exit(1)
  },
}

async function open() {
  const config = {
    stripeSecretKey: 'sk_test_bench',
    stripeWebhookSecret: process.env.WEBHOOK_SECRET,
    poolConfig: {},
    logger,
  }
  if (!StripeSync.create) return new StripeSync(config)
  // Without an id, the account is requested from Stripe.
  const sync = await StripeSync.create({ ...config, stripeAccountId: 'acct_bench' })
  return sync.webhook
}

async function deliver(webhook, deliveries) {
  for (const [body, signature] of deliveries) {
    await webhook.processWebhook(body, signature)
  }
}

if (command === 'migrate') {
  await runMigrations({
    schema: 'stripe',
    // The oldest version; with a file it is not downloaded.
    stripeApiVersion: '2020-08-27',
    openApiSpecPath: process.env.OPENAPI_FILE,
    logger,
  })
} else {
  const deliveries = JSON.parse(await readFile(file, 'utf8'))
  const webhook = await open()
  await deliver(webhook, deliveries.slice(0, warmUp))
  console.log('ready')
  await createInterface({ input: process.stdin })[Symbol.asyncIterator]().next()
  await deliver(webhook, deliveries.slice(warmUp))
  console.log('done')
}
process.exit(0)
