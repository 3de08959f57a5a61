// Starts aws-lambda-ric on the handler. Its own bin/index.mjs would print a line into the
// function's log at every start.
import { run } from './node_modules/aws-lambda-ric/dist/index.mjs';

await run(process.env.LAMBDA_TASK_ROOT ?? process.cwd(), process.env._HANDLER);
