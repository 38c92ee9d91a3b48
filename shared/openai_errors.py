"""Every failure of the HTTP application, in the shape OpenAI's clients expect."""

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from shared.errors import UserError
from shared.openai_protocol import ApiError


def add_errors(app: FastAPI) -> None:
    """Answer every failure in OpenAI's shape."""

    @app.exception_handler(ApiError)
    async def api_error(_: Request, error: ApiError) -> JSONResponse:
        return JSONResponse(error.body(), error.status)

    @app.exception_handler(UserError)
    async def user_error(_: Request, error: UserError) -> JSONResponse:
        from shared.generation import ContextOverflowError

        code = "context_length_exceeded" if isinstance(error, ContextOverflowError) else None
        # exit_code 1 means that the input was fine and the work failed: clients should try again later.
        answer = ApiError(str(error), code=code, status=503 if error.exit_code == 1 else 400)
        return JSONResponse(answer.body(), answer.status)

    @app.exception_handler(RequestValidationError)
    async def validation_error(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body") or None
        return JSONResponse(ApiError(f"{where or 'body'}: {first['msg']}", param=where).body(), 400)

    @app.exception_handler(HTTPException)
    async def below_the_api(request: Request, error: HTTPException) -> JSONResponse:
        detail = (
            f"Unknown request URL: {request.method} {request.url.path}" if error.status_code == 404 else error.detail
        )
        return JSONResponse(ApiError(detail, status=error.status_code).body(), error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse(ApiError(f"{type(error).__name__}: {error}", status=500).body(), 500)
