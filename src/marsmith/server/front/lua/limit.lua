-- Refuses a body of more than LARGEST bytes. Its length is known here: who does not say it is held before until it is.
local GRPC_FRAME_BYTES = 5

function envoy_on_request(handle)
  local headers = handle:headers()
  local length = tonumber(headers:get("content-length") or "") or 0
  local grpc = string.sub(headers:get("content-type") or "", 1, 16) == "application/grpc"
  if length > LARGEST + (grpc and GRPC_FRAME_BYTES or 0) then
    handle:respond({ [":status"] = "413" }, "")
  end
end
