import logging
import os

logger = logging.getLogger()
logger.setLevel(logging.INFO)


def handler(event, context):
    name = event.get("name") or "world"
    greeting = os.environ.get("GREETING", "Hello")
    logger.info("greeting %s", name)
    return {
        "message": f"{greeting}, {name}!",
        "runtime": "python",
        "greeting": greeting,
        "request_id": context.aws_request_id,
    }
