export const handler = async (event, context) => {
  const name = event.name || 'world';
  const greeting = process.env.GREETING ?? 'Hello';
  console.log(`greeting ${name}`);
  return {
    message: `${greeting}, ${name}!`,
    runtime: 'nodejs',
    greeting,
    request_id: context.awsRequestId,
  };
};
